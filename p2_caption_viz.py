"""Caption photos, and draw for each token of the caption where the decoder looked when it predicted it.

    python p2_caption_viz.py p2_images --output-dir OUT
    python p2_caption_viz.py photos --output-dir OUT --checkpoint weights/demo_captioner.pt --merge-wordpieces
    python p2_caption_viz.py girl.jpg --output-dir OUT --caption "a girl holding a red umbrella ." --layer 2

For each image (folders count as the images in them) STEM.png shows the photo, the caption, and for each token
the cross-attention of one layer of the decoder, mean over its heads, over the photo; for one in a subfolder,
SUBFOLDER/STEM.png. STEM.json holds
`caption`, `tokens`, `token_ids`, `log_probs`, `grid` (rows and columns of the maps), `photo` (its path),
`box` (left, top, right and bottom of what the maps cover, in pixels of the photo) and, with
--merge-wordpieces, `words`. STEM.npz holds the maps, each sums to 1, in row t of the query that predicts t:

    attention (T, H, W)                  of --layer, mean over its heads
    attention_all (layers, T, H, W)      with --all, mean over the heads
    attention_words (words, H, W)        with --merge-wordpieces: the mean over the pieces of each word
"""

import os
import re
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, number, reports_errors
from common.errors import BadInput

DOWNLOADS = Path(__file__).resolve().parent / "downloads"
CHECKPOINT, VOCAB = DOWNLOADS / "catr.pth", DOWNLOADS / "vocab.txt"


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGES", help="image files and folders")
    add("--output-dir", type=Path, required=True, metavar="DIR", help="is created")
    add("--checkpoint", type=Path, metavar="FILE", help="of CATR or of p2_train.py (downloads/catr.pth)")
    add("--vocab", type=Path, metavar="FILE", help="vocabulary of a CATR checkpoint (downloads/vocab.txt)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=8, metavar="N",
        help="photos at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")

    group = parser.add_argument_group("the caption")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--beam", type=number(int, low=1, high=100), default=1, metavar="N",
                       help="width of the beam search; 1 is greedy (%(default)s)")
    which.add_argument("--caption", metavar="TEXT", help="this one for every photo")
    group.add_argument("--max-tokens", type=number(int, low=1), default=40, metavar="N",
                       help="cut captions here (%(default)s)")

    add = parser.add_argument_group("the maps").add_argument
    add("--layer", type=int, default=-1, metavar="N", help="of this decoder layer: 0 first, -1 last")
    add("--merge-wordpieces", action="store_true", help="one map for each word instead of each token")
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

    from common.files import write_text, written_whole
    from datasets.photos import find_photos, refuse_to_overwrite, refuse_undecodable
    from engine.device import keep_freed_memory, pick_device
    from interpret.captions import captioned, describe
    from models import catr, decoding
    from plots.captions import draw_caption
    from plots.drawing import Drawing

    device = pick_device(args.device)
    keep_freed_memory(device)
    photos = find_photos(args.images, [args.output_dir])
    paths = list(photos.values())
    refuse_to_overwrite(args.output_dir, ("png", "json", "npz"), photos, paths)
    refuse_undecodable(paths)
    model, tokenizer = catr.open_captioner(args.checkpoint or CHECKPOINT, args.vocab, VOCAB)
    model.to(device)
    config = model.config
    decoding.check_limits(model, args.max_tokens, args.layer)
    given = None if args.caption is None else given_caption(args.caption, tokenizer, config)

    label = (f"cross-attention of layer {args.layer % config.decoder_layers} of the decoder, counted from 0; "
             f"mean over its {config.heads} heads")
    with Drawing() as drawing:
        for name, (path, photo, forced) in zip(photos, captioned(
                model, tokenizer, paths, args.batch_size, args.max_tokens, args.beam, given)):
            box = catr.grid_box(photo.size, forced.attention.shape[-2:], config)
            metadata, arrays, panels = describe(forced, tokenizer, args.layer, os.path.abspath(path), box,
                                                args.all, args.merge_wordpieces)
            output, caption = args.output_dir / name, metadata["caption"]
            with written_whole(f"{output}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
            write_text(f"{output}.json", json.dumps(metadata, indent=1) + "\n")
            drawing.draw(f"{output}.png", draw_caption, np.asarray(photo), box, *panels, caption,
                         name + ", for a given caption" * bool(given), label)
            print(f"{name}: {caption or '(no words)'}")
            if forced.ids[-1] != tokenizer.end:
                at_most = args.max_tokens == config.positions
                remedy = ", the captioner's most" if at_most else ": raise --max-tokens"
                note(f"{name}: the caption was cut after {len(forced.ids)} tokens{remedy}")
    print(f"{len(paths)} caption{'s' * (len(paths) > 1)} drawn to {args.output_dir}")
    return 0


def given_caption(text, tokenizer, config):
    """The ids of the user's caption and the end. BadInput for an empty one and one with too many tokens."""
    ids = [*tokenizer.encode(text), tokenizer.end]
    if len(ids) == 1:
        raise BadInput("--caption is empty: write some words")
    if len(ids) > config.positions:
        raise BadInput(f"--caption has {len(ids)} tokens, with the end, and this captioner has positions for "
                       f"{config.positions}: shorten it")
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", text))
    if unknown := [word for word in words if tokenizer.unknown in tokenizer.encode(word)]:
        note(f"--caption: not in the vocabulary, shown as [UNK]: {', '.join(unknown)}")
    return ids


if __name__ == "__main__":
    sys.exit(main())
