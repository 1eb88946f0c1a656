"""Drawn scenes with captions: the captioner's embedded data set, made in seconds and needing no network.

A scene shows two groups of shapes over a busy grey background: one shape, or two that are alike. Its caption
follows from the picture: `a red star next to two blue squares` where the groups lie side by side, the left
one named first, and `above` where they lie on top of each other. Colours and shapes of the two groups differ.
Plurals are two tokens, such as `cross` and `##es`: the vocabulary holds singulars and endings alone.

    python -m datasets.scenes --output data/scenes --train 5000 --val 400

Written on disk, in the layout of COCO that `datasets.captions` reads:

    DIR/annotations/captions_train.json ...   COCO's captions format
    DIR/train/{id}.jpg  DIR/val/...
    DIR/masks/train/{id}.png ...              1 on what is named first, 2 on what is named second, 0 elsewhere
    DIR/vocab.txt                             one token a line
    DIR/draw.json                             what was drawn; a folder with the same one is not drawn again
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

from common.cli import ArgumentParser, number, reports_errors
from datasets import shapes
from datasets.shapes import SPLITS

COLOURS = {"red": (215, 45, 45), "green": (50, 185, 70), "blue": (55, 85, 225), "yellow": (230, 210, 50),
           "purple": (165, 60, 190), "white": (235, 235, 235)}
SHAPES = ["arrow", "crescent", "cross", "heart", "ring", "square", "star", "triangle"]
ENDINGS = {"cross": "es"}  # of the plural, where it is not s
DEMO_DATA = Path(__file__).resolve().parent.parent / "data" / "scenes"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "two", "next", "to", "above", *COLOURS, *SHAPES,
              "##s", "##es"]
SIZES = [(160, 120), (120, 160), (144, 144)]
RADIUS = (0.16, 0.21)  # of a shape, as a part of the shorter side
ROLES = {"a": "article", "two": "number", **dict.fromkeys(COLOURS, "colour"),
         **dict.fromkeys(SHAPES, "shape"), **dict.fromkeys(["##s", "##es"], "plural"),
         **dict.fromkeys(["next", "to", "above"], "relation"), "[SEP]": "end"}


def draw_scene(rng):
    """Draw a scene with the numpy generator `rng`: (image, caption, mask).

    Image: uint8 (height, width, 3); mask: uint8 (height, width), 1 and 2 on the groups in caption order.
    """
    width, height = size = SIZES[rng.integers(len(SIZES))]
    colours, names = rng.choice(list(COLOURS), 2, replace=False), rng.choice(SHAPES, 2, replace=False)
    counts = [(1, 1), (1, 2), (2, 1)][rng.integers(3)]
    axis = rng.integers(2)  # 0: side by side; 1: one above the other
    groups = np.repeat([0, 1], counts)
    radii = rng.uniform(*RADIUS, 2)[groups] * min(size)
    centers = _places(rng, np.array(size), groups, radii, axis)

    image = shapes.busy_background(rng, size)
    image = 0.3 * image + 0.7 * image.mean(2, keepdims=True)
    mask = np.zeros((height, width), np.uint8)
    for group, center, radius in zip(groups, centers, radii):
        tilt = rng.uniform(-shapes.MAX_TILT, shapes.MAX_TILT)
        cover = shapes.shape_mask(names[group], size, center, radius, tilt)
        colour = COLOURS[colours[group]] + rng.uniform(-14, 14, 3)
        surface = colour + shapes.gradient(rng, size, 0, 0, spread=12)
        alpha = cover[:, :, None] / 255
        image = alpha * surface + (1 - alpha) * image
        mask[cover > 127] = 1 + group
    image += rng.normal(0, 5, image.shape)
    phrases = [f"a {colour} {name}" if count == 1 else f"two {colour} {name}{ENDINGS.get(name, 's')}"
               for count, colour, name in zip(counts, colours, names)]
    return np.clip(image, 0, 255).astype(np.uint8), (" next to ", " above ")[axis].join(phrases), mask


def _places(rng, size, groups, radii, axis):
    """Random centres (shapes, 2) where nothing overlaps and the groups lie clearly apart along `axis`."""
    while True:
        centers = rng.uniform(radii[:, None] * 1.05, size - radii[:, None] * 1.05)
        one, two = centers[groups == 0], centers[groups == 1]
        apart = two.mean(0) - one.mean(0)
        gap = two[:, axis].min() - one[:, axis].max()
        distance = np.linalg.norm(centers[:, None] - centers, axis=2) + np.diag([math.inf] * len(centers))
        if (gap >= 0.15 * size[axis] and apart[axis] >= 1.6 * abs(apart[1 - axis])
                and (distance > 1.1 * (radii[:, None] + radii)).all()):
            return centers


def roles(tokens):
    """(role in `ROLES`, else unknown; group that it is of: 1, 2, or 0 for both) of a caption's tokens."""
    pairs, group = [], 1
    for token in tokens:
        role = ROLES.get(token, "unknown")
        if role == "relation":
            group = 2  # of all that follows
        pairs.append((role, 0 if role in ("relation", "end") else group))
    return pairs


def write_scenes(folder, train=5000, val=400, seed=0):
    """Draw scenes into `folder` (layout above) unless they are already there: see `shapes.drawn_once`."""

    def fill(unfinished):
        (unfinished / "annotations").mkdir()
        (unfinished / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
        for split, count in (("train", train), ("val", val)):
            jobs = [(i, seed) for i in range(count)]
            captions = enumerate(shapes.draw_split(unfinished, split, _write_scene, jobs))
            (unfinished / "annotations" / f"captions_{split}.json").write_text(json.dumps({
                "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(count)],
                "annotations": [{"id": i, "image_id": i, "caption": caption} for i, caption in captions]}))

    return shapes.drawn_once(folder, {"version": 1, "train": train, "val": val, "seed": seed},
                             {"annotations", "masks", "train", "val", "vocab.txt"}, fill)


def _write_scene(folder, split, index, seed):
    image, caption, mask = draw_scene(np.random.default_rng([seed, SPLITS[split], index]))
    shapes.save_pair(folder, split, index, image, mask)
    return caption


def get_args_parser():
    parser = ArgumentParser(__doc__, prog="python -m datasets.scenes")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="where the scenes go")
    add("--train", type=number(int, low=1), default=5000, metavar="N", help="to train on (%(default)s)")
    add("--val", type=number(int, low=0), default=400, metavar="N", help="to validate on (%(default)s)")
    add("--seed", type=number(int, low=0), default=0, metavar="N", help="chooses the draw (%(default)s)")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    write_scenes(args.output, args.train, args.val, args.seed)
    print(f"{args.output}: {args.train} scenes to train on, {args.val} to validate on")


if __name__ == "__main__":
    sys.exit(main())
