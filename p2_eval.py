"""Score a captioner on photos with captions, and on drawn scenes whether each word looks at what it names.

    python p2_eval.py --data demo --checkpoint weights/demo_captioner.pt
    python p2_eval.py --data coco --checkpoint downloads/catr.pth --vocab downloads/vocab.txt --beam 3

`--data DIR` is in COCO's layout: `annotations/captions_val2017.json` and photos in `val2017/`, or the same
without a year. Printed are the share of captions that equal a reference word for word, BLEU-4 and CIDEr.
Words are cut as BERT's (lower case, no accents, punctuation as words): leaderboards have other numbers.

Where DIR/masks/val holds a mask for each photo, as with the demo's scenes, the true caption is forced, and
for each class of words the cross-attention compared with the object that a token speaks of:

    peak     the pointing game: how often the peak of the map lies on the object, grown by a cell; by chance
    mass     the share of the attention on the object, and the share of the area that it covers
    other    the share of the attention on the other object of the scene

A relation (`next to`) speaks of both objects. Articles are also listed by the phrase that they begin.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder in COCO's layout; or `demo`: drawn scenes")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="of p2_train.py or of CATR")
    add("--vocab", type=Path, metavar="FILE", help="the vocabulary of a CATR checkpoint")
    add("--json", type=Path, metavar="FILE", help="write the figures, and the caption of each photo")
    add("--layer", type=int, default=-1, metavar="N", help="maps of this decoder layer: 0 first, -1 the last")
    add("--beam", type=number(int, low=1, high=100), default=1, metavar="N",
        help="width of the beam search; 1 is greedy (%(default)s)")
    add("--max-tokens", type=number(int, low=1), default=40, metavar="N", help="cut them here (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N",
        help="photos at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    add("--skip-bad", action="store_true", help="go on without photos that cannot be used")
    return parser


def caption_all(model, tokenizer, folder, masks, args, unfinished):
    """The captions of a CaptionedFolder's photos; where there are masks, the pointings of the true ones."""
    from tqdm import tqdm

    from interpret.captions import encoded, pointing_game
    from interpret.grounding import Pointing
    from models import decoding

    paths, done = [folder.root / name for name in folder.names], len(unfinished.rows) * args.batch_size
    batches = encoded(model, paths, args.batch_size, done)
    total = -(-(len(paths) - done) // args.batch_size)
    for rows, photos, memory in tqdm(batches, total=total, unit=" batches", disable=None):
        ids, pointings = decoding.search(model, memory, tokenizer, args.max_tokens, args.beam), []
        if masks:
            first = [texts[0] for texts in folder.captions[rows]]
            pointings = pointing_game(model, tokenizer, memory, photos, first, masks[rows], args.layer)
        unfinished.append((list(map(tokenizer.text, ids)),
                           [(word_class, tuple(pointing)) for word_class, pointing in pointings]))
    return ([caption for captions, _ in unfinished.rows for caption in captions],
            [(word_class, Pointing(*values)) for _, batch in unfinished.rows for word_class, values in batch])


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    import json

    from common.files import refuse_unwritable, sha256, write_text
    from common.unfinished import Unfinished, identity_of
    from datasets.captions import read_captions
    from datasets.decode import explaining_bad_images
    from datasets.images import image_names
    from datasets.masks import find_mask
    from datasets.scenes import DEMO_DATA, write_scenes
    from engine.device import keep_freed_memory, pick_device
    from interpret.caption_scores import score
    from interpret.grounding import pointing_table
    from models import catr, decoding

    device = pick_device(args.device)
    keep_freed_memory(device)
    model, tokenizer = catr.open_captioner(args.checkpoint, args.vocab)
    model.to(device)
    decoding.check_limits(model, args.max_tokens, args.layer)
    data = write_scenes(DEMO_DATA) if args.data == "demo" else Path(args.data)
    folder = read_captions(data, "val")
    usable = set(image_names(folder.root, args.skip_bad, names=folder.names))
    folder = folder.keep([i for i, name in enumerate(folder.names) if name in usable])
    tokenizer.check_captions(folder.pairs()[1], folder.root)
    mask_folder, masks = data / "masks" / "val", []
    if mask_folder.is_dir():
        masks = [find_mask(mask_folder, Path(name).with_suffix("")) for name in folder.names]
    if args.json:
        refuse_unwritable(args.json)

    paths = [folder.root / name for name in folder.names]
    unfinished = Unfinished(args.json, folder.captions, args.layer, args.beam, args.max_tokens,
                            args.batch_size, device.type,
                            identity_of(filter(None, [args.checkpoint, args.vocab, *paths, *masks])))
    with explaining_bad_images(folder.root, folder.names):
        captions, pointings = caption_all(model, tokenizer, folder, masks, args, unfinished)

    exact, bleu4, cider = score(captions, folder.captions, tokenizer.words)
    print(f"{len(captions)} captions: exact {exact / len(captions):.1%} ({exact}), BLEU-4 {bleu4:.1f}, "
          f"CIDEr {cider:.2f}")
    table = pointing_table(pointings)
    print_pointings(table)
    if args.json:
        result = {"exact": exact / len(captions), "bleu4": bleu4, "cider": cider, "photos": len(captions),
                  "pointing": table, "checkpoint_sha256": sha256(args.checkpoint),
                  "captions": dict(zip(folder.names, captions))}
        write_text(args.json, json.dumps(result, indent=1) + "\n")
    unfinished.remove()
    return 0


def print_pointings(table):
    """Print a `pointing_table`, if there is anything in it."""
    if table:
        print(f"\n{'word class':22}{'tokens':>7}{'peak':>8}{'chance':>8}{'mass':>8}{'area':>8}{'other':>8}")
    for word_class, row in table.items():
        print(f"{word_class:22}{row['tokens']:7}" + "".join(
            f"{row[name]:8.1%}" for name in ("hit", "chance", "mass", "area", "elsewhere")))


if __name__ == "__main__":
    sys.exit(main())
