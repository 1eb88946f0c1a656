"""Caption photos, and draw for each token of the caption where the decoder looked when it predicted it.

    python p2_caption_viz.py p2_images --output-dir OUT
    python p2_caption_viz.py photos --output-dir OUT --checkpoint weights/demo_captioner.pt --merge-wordpieces
    python p2_caption_viz.py girl.jpg --output-dir OUT --caption "a girl holding a red umbrella ." --layer 2

For each image (folders count as the images in them) STEM.png shows the photo, the caption, and for each token the
cross-attention of one layer of the decoder, mean over its heads, over the photo. STEM.json holds `caption`, `tokens`,
`token_ids`, `log_probs`, `grid` (rows and columns of the maps), `photo` (its path), `box` (left, top, right and bottom of
what the maps cover, in pixels of the photo) and, with --merge-wordpieces, `words`. STEM.npz holds the maps as the softmax
gives them, so that each sums to 1; row t belongs to the query that predicts token t:

    attention (T, H, W)                  of --layer, mean over its heads
    attention_per_head (heads, T, H, W)  with --heads
    attention_all (layers, T, H, W)      with --all, mean over the heads
    attention_words (words, H, W)        with --merge-wordpieces: the mean over the pieces of each word
"""

import argparse
import re
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, number, reports_errors
from common.errors import BadInput

DOWNLOADS = Path(__file__).resolve().parent / "downloads"
CHECKPOINT, VOCAB = DOWNLOADS / "catr.pth", DOWNLOADS / "vocab.txt"


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGES", help="image files and folders")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="is created")
    add("--checkpoint", type=Path, metavar="FILE", help="of CATR or of p2_train.py (downloads/catr.pth)")
    add("--vocab", type=Path, metavar="FILE", help="the vocabulary of a CATR checkpoint (downloads/vocab.txt)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=8, metavar="N",
        help="photos at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU where there is one")

    group = parser.add_argument_group("the caption")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--beam", type=number(int, low=1, high=100), default=1, metavar="N",
                       help="width of the beam search; 1 is greedy (%(default)s)")
    which.add_argument("--caption", metavar="TEXT", help="instead of the captioner's own, this one for every photo")
    group.add_argument("--max-tokens", type=number(int, low=1), default=40, metavar="N",
                       help="cut captions here (%(default)s)")

    add = parser.add_argument_group("the maps").add_argument
    add("--layer", type=int, default=-1, metavar="N", help="of this layer of the decoder: 0 is the first, -1 the last")
    add("--merge-wordpieces", action="store_true", help="one map for each word instead of each token")
    add("--heads", action="store_true", help="also store each head of the layer by itself")
    add("--all", action="store_true", help="also store all layers")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not args.checkpoint and not CHECKPOINT.exists():
        raise BadInput(f"{CHECKPOINT} does not exist: put CATR's weights there, or pass --checkpoint FILE "
                       "(the demo's own is weights/demo_captioner.pt)")

    # After the arguments, so that --help and typing errors answer at once.
    import json

    import numpy as np
    import torch

    from common.files import write_text, written_whole
    from datasets import decode
    from datasets.photos import find_images, refuse_to_overwrite
    from engine.device import pick_device
    from models import catr, decoding
    from models.tokenizer import joined, words_of
    from plots.captions import draw_caption
    from plots.drawing import Drawing

    device = pick_device(args.device)
    paths = find_images(args.images)
    refuse_to_overwrite(args.output_dir, ("png", "json", "npz"), [path.stem for path in paths], paths)
    bad = decode.undecodable("", paths)  # before the first figure is drawn
    if bad:
        raise decode.bad_files("", bad, len(paths), remedy="mend them or leave them out")

    model, tokenizer = catr.open_captioner(args.checkpoint or CHECKPOINT, args.vocab, VOCAB)
    model.to(device)
    config = model.config
    decoding.check_limits(model, args.max_tokens, args.layer)
    given = given_caption(args.caption, tokenizer, config) if args.caption is not None else None

    label = (f"cross-attention of layer {args.layer % config.decoder_layers} of the decoder, counted from 0; mean over "
             f"its {config.heads} heads")
    with Drawing() as drawing:
        for start in range(0, len(paths), args.batch_size):
            batch = paths[start:start + args.batch_size]
            photos = [decode.load_image(path) for path in batch]
            memory = decoding.encode(model, photos)
            captions = [given] * len(batch) if given else \
                decoding.search(model, memory, tokenizer, args.max_tokens, args.beam)
            for path, photo, reading in zip(batch, photos, decoding.teacher_force(model, memory, captions, tokenizer)):
                caption, tokens = tokenizer.text(reading.ids), tokenizer.tokens(reading.ids)
                attention, log_probs = reading.attention[args.layer].mean(0), reading.log_probs
                box = catr.grid_box(photo.size, attention.shape[1:], config)
                arrays = {"attention": attention}
                told = {"caption": caption, "tokens": tokens, "token_ids": reading.ids, "log_probs": log_probs.tolist(),
                        "grid": list(attention.shape[1:]), "photo": str(path.resolve()), "box": box}
                if args.all:
                    arrays["attention_all"] = reading.attention.mean(1)
                if args.heads:
                    arrays["attention_per_head"] = reading.attention[args.layer]
                shown = ["[end]" if i == tokenizer.end else token for i, token in zip(reading.ids, tokens)]
                if args.merge_wordpieces:
                    words = words_of(tokens)
                    attention = arrays["attention_words"] = torch.stack([attention[pieces].mean(0) for pieces in words])
                    log_probs = torch.stack([log_probs[pieces].sum() for pieces in words])
                    shown = [joined([shown[i] for i in pieces]) for pieces in words]
                    told["words"] = [{"word": joined([tokens[i] for i in pieces]), "tokens": pieces, "log_prob": log_prob}
                                     for pieces, log_prob in zip(words, log_probs.tolist())]
                with written_whole(args.output_dir / f"{path.stem}.npz") as temporary:
                    np.savez_compressed(temporary, **{name: values.numpy() for name, values in arrays.items()})
                write_text(args.output_dir / f"{path.stem}.json", json.dumps(told, indent=1) + "\n")
                heading = path.stem + ", for a given caption" * bool(given)
                drawing.draw(args.output_dir / f"{path.stem}.png", draw_caption, np.asarray(photo), box,
                             attention.numpy(), shown, log_probs.exp().tolist(), caption, heading, label)
                print(f"{path.stem}: {caption or '(no words)'}")
                if reading.ids[-1] != tokenizer.end:
                    remedy = ": raise --max-tokens" if args.max_tokens < config.positions else ", the captioner's most"
                    note(f"{path.stem}: the caption was cut after {len(tokens)} tokens{remedy}")
    print(f"{len(paths)} caption{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


def given_caption(text, tokenizer, config):
    """The ids of the user's caption and the end. BadInput for an empty one and for one with too many tokens."""
    ids = [*tokenizer.encode(text), tokenizer.end]
    if len(ids) == 1:
        raise BadInput("--caption is empty: write some words")
    if len(ids) > config.positions:
        raise BadInput(f"--caption has {len(ids)} tokens, with the end, and this captioner has positions for "
                       f"{config.positions}: shorten it")
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", text))
    unknown = [word for word in words if tokenizer.unknown in tokenizer.encode(word)]
    if unknown:
        note(f"--caption: not in the vocabulary, shown as [UNK]: {', '.join(unknown)}")
    return ids


if __name__ == "__main__":
    sys.exit(main())
