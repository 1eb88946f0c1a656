"""Score a captioner on photos with captions; on drawn scenes also ask whether each word's map lies on what it names.

    python p2_eval.py --data demo --checkpoint weights/demo_captioner.pt
    python p2_eval.py --data coco --checkpoint downloads/catr.pth --vocab downloads/vocab.txt --beam 3 --json result.json

`--data DIR` is in COCO's layout: `annotations/captions_val2017.json` and the photos in `val2017/`, or the same without a
year. Printed are the share of captions that equal a reference word for word, and BLEU-4 over all of them; letters count as
lower case, without accents, and punctuation as words.

Where DIR/masks/val holds a mask for each photo, as with the demo's scenes, the true caption is read by the captioner, and
the cross-attention of each token is compared with the object that it speaks of, for each class of words:

    peak        the pointing game: how often the peak of the map lies on the object, grown by a cell, and by chance
    mass        the share of the attention on the object, and the share of the area that it covers
    other       the share of the attention on the other object of the scene

A relation (`next to`) speaks of both objects. Articles are also listed by the phrase that they begin: the same word, at
different places.
"""

import argparse
import sys
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder in COCO's layout; or `demo`: scenes drawn within a minute")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="of p2_train.py or of CATR")
    add("--vocab", type=Path, metavar="FILE", help="the vocabulary of a CATR checkpoint")
    add("--json", type=Path, metavar="FILE", help="write the figures, and the caption of each photo")
    add("--layer", type=int, default=-1, metavar="N", help="maps of this layer of the decoder: 0 is the first, -1 the last")
    add("--beam", type=number(int, low=1, high=100), default=1, metavar="N",
        help="width of the beam search; 1 is greedy (%(default)s)")
    add("--max-tokens", type=number(int, low=1), default=40, metavar="N", help="cut captions here (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N", help="photos at a time (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU where there is one")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    import dataclasses
    import json

    import sacrebleu
    import torch
    from tqdm import tqdm

    from common.files import refuse_unwritable, sha256, write_text
    from datasets import captions, decode, scenes
    from datasets.masks import find_mask, load_groups, patch_cover
    from engine.device import pick_device
    from interpret.grounding import mean, point
    from models import catr, decoding

    device = pick_device(args.device)
    model, tokenizer = catr.open_captioner(args.checkpoint, args.vocab)
    model.to(device)
    decoding.check_limits(model, args.max_tokens, args.layer)
    data = scenes.write_scenes(scenes.DEMO_DATA) if args.data == "demo" else Path(args.data)
    folder = captions.read_captions(data, "val")
    masks = data / "masks" / "val"
    files = [find_mask(masks, Path(name).with_suffix("")) for name in folder.names] if masks.is_dir() else None

    if args.json:
        refuse_unwritable(args.json)
    found, pointings = [], {}

    def judge(reading, size, groups):
        """Add the Pointings of a scene's caption."""
        tokens = tokenizer.tokens(reading.ids)
        box = catr.grid_box(size, reading.attention.shape[-2:], model.config)
        one, two = (torch.from_numpy(patch_cover(group, box, reading.attention.shape[-2:])) for group in groups)
        objects = {0: (one + two, torch.zeros_like(one)), 1: (one, two), 2: (two, one)}
        for (role, group), attention in zip(scenes.roles(tokens), reading.attention[args.layer].mean(0)):
            pointing = point(attention, *objects[group])
            pointings.setdefault(role, []).append(pointing)
            if role == "article":
                pointings.setdefault(f"article of the {('first', 'second')[group - 1]}", []).append(pointing)

    with decode.explaining_bad_images(folder.root, folder.names):
        for start in tqdm(range(0, len(folder.names), args.batch_size), unit=" batches", disable=None, dynamic_ncols=True):
            rows = range(start, min(start + args.batch_size, len(folder.names)))
            photos = [decode.load_image(folder.root / folder.names[i]) for i in rows]
            memory = decoding.encode(model, photos)
            found += [tokenizer.text(ids) for ids in decoding.search(model, memory, tokenizer, args.max_tokens, args.beam)]
            if files:
                true = [tokenizer.caption(folder.captions[i][0], model.config.positions) for i in rows]
                for i, photo, reading in zip(rows, photos, decoding.teacher_force(model, memory, true, tokenizer)):
                    judge(reading, photo.size, load_groups(files[i], photo.size))

    words = [" ".join(tokenizer.words(text)) for text in found]
    references = [[" ".join(tokenizer.words(text)) for text in texts] for texts in folder.captions]
    exact = sum(text in texts for text, texts in zip(words, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(max(map(len, references)))]
    bleu = sacrebleu.corpus_bleu(words, streams, force=True, tokenize="none").score
    print(f"{len(found)} captions: exact {exact / len(found):.1%} ({exact}), BLEU-4 {bleu:.1f}")
    summary = {role: {"tokens": len(parts), **dataclasses.asdict(mean(parts))} for role, parts in sorted(pointings.items())}
    if summary:
        print(f"\n{'word class':22}{'tokens':>7}{'peak':>8}{'chance':>8}{'mass':>8}{'area':>8}{'other':>8}")
        for role, row in summary.items():
            print(f"{role:22}{row['tokens']:7}" + "".join(
                f"{row[name]:8.1%}" for name in ("hit", "chance", "mass", "area", "elsewhere")))
    if args.json:
        write_text(args.json, json.dumps({
            "exact": exact / len(found), "bleu4": bleu, "photos": len(found), "pointing": summary,
            "checkpoint_sha256": sha256(args.checkpoint), "captions": dict(zip(folder.names, found))}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
