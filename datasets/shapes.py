"""Drawn images of one shape each: the embedded data set, made in seconds and needing no network.

An image shows one filled shape, tilted, anywhere inside the square that a centre crop leaves: light, over a
darker background of gradients, stripes and noise, with small strokes and dots of any colour as distractors.
Colours and positions say nothing about the class: a linear classifier on pixels fails, a network does not.

    python -m datasets.shapes --output data/pretrain --classes pretrain --train-per-class 1000 --seed 1

Written on disk, in the flat layout that `datasets.images` reads:

    DIR/classes.txt                          one name a line, in label order
    DIR/train/{label}_{id}.jpg  DIR/val/...
    DIR/masks/train/{label}_{id}.png ...     255 on the shape, 0 elsewhere, same size as the photo
    DIR/draw.json                            what was drawn; a folder with the same one is not drawn again
"""

import contextlib
import json
import math
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.cli import ArgumentParser, number, reports_errors
from common.errors import BadInput
from common.files import folder_written_whole
from common.machine import keep_freed_memory

DEMO_DATA = Path(__file__).resolve().parent.parent / "data" / "demo"
TAU = 2 * math.pi
SUPERSAMPLING = 2
MAX_TILT = math.radians(30)
SPLITS = {"train": 0, "val": 1}  # as numbers they enter the seeds, so that both are different draws
PROCESSES = 2


def _arc(radius, start=0.0, stop=TAU, center=(0.0, 0.0)):
    angle = np.linspace(start, stop, 48)
    return center + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _radial(radii):
    """The polygon with corners at equal angles, the first one at the top, and at the distances `radii`."""
    angle = TAU * np.arange(len(radii)) / len(radii) - TAU / 4
    return np.asarray(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _polygon(points):
    """Corners as SVG writes them, `x,y x,y ...`."""
    return np.array([point.split(",") for point in points.split()], dtype=float)


def _heart():
    t = np.linspace(0, TAU, 64)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], 1) / 17


# name -> outlines (corners in the unit disc, y points down): the first is filled, later ones are cut out
OUTLINES = {
    # the demo's classes
    "arrow": [_polygon("-.22,1 -.22,0 -.7,0 0,-1 .7,0 .22,0 .22,1")],
    "bolt": [_polygon(".25,-1 -.6,.15 -.08,.15 -.3,1 .6,-.25 .08,-.25")],
    "crescent": [_arc(0.95), _arc(0.8, center=(0.42, 0))],
    "cross": [_polygon("-.3,-1 .3,-1 .3,-.3 1,-.3 1,.3 .3,.3 .3,1 -.3,1 -.3,.3 -1,.3 -1,-.3 -.3,-.3")],
    "heart": [_heart()],
    "mushroom": [np.vstack([_arc(1, TAU / 2, TAU) * [0.95, 0.85], _polygon(".32,0 .32,.9 -.32,.9 -.32,0")])],
    "ring": [_arc(0.95), _arc(0.52)],
    "square": [_polygon("-.75,-.75 .75,-.75 .75,.75 -.75,.75")],
    "star": [_radial([1, 0.42] * 5)],
    "triangle": [_radial([1, 1, 1])],
    # the classes that the shipped model was pretrained on
    "anvil": [_polygon("-.9,-.6 .9,-.6 .3,0 .75,.6 -.75,.6 -.3,0")],
    "capsule": [np.vstack([_arc(0.42, TAU / 2, TAU, (0, -0.5)), _arc(0.42, 0, TAU / 2, (0, 0.5))])],
    "chevron": [_polygon("-.9,.1 0,-.8 .9,.1 .9,.75 0,-.15 -.9,.75")],
    "circle": [_arc(0.9)],
    "drop": [np.vstack([_arc(0.62, -0.4, TAU / 2 + 0.4, (0, 0.35)), _polygon("0,-1")])],
    "frame": [_polygon("-.75,-.75 .75,-.75 .75,.75 -.75,.75"), _polygon("-.4,-.4 .4,-.4 .4,.4 -.4,.4")],
    "gear": [_radial([0.95, 0.95, 0.66, 0.66] * 8)],
    "half disc": [_arc(0.95, TAU / 2, TAU, (0, 0.4))],
    "hexagon": [_radial([0.95] * 6)],
    "hourglass": [_polygon("-.7,-.9 .7,-.9 .12,0 .7,.9 -.7,.9 -.12,0")],
    "L": [_polygon("-.6,-.9 -.05,-.9 -.05,.35 .75,.35 .75,.9 -.6,.9")],
    "pie": [np.vstack([_arc(0.95, 0.6, TAU - 0.6), _polygon("0,0")])],
    "rhombus": [_polygon("0,-1 .6,0 0,1 -.6,0")],
    "spark": [_radial([1, 0.3] * 4)],
    "sun": [_radial([1, 0.7] * 11)],
    "T": [_polygon("-.85,-.85 .85,-.85 .85,-.3 .28,-.3 .28,.9 -.28,.9 -.28,-.3 -.85,-.3")],
    "U": [_polygon("-.75,-.85 -.25,-.85 -.25,.35 .25,.35 .25,-.85 .75,-.85 .75,.85 -.75,.85")],
    "wave": [_polygon("-1,-.2 -.5,-.65 0,-.2 .5,-.65 1,-.2 1,.4 .5,-.05 0,.4 -.5,-.05 -1,.4")],
}
DEMO_CLASSES = list(OUTLINES)[:10]
PRETRAIN_CLASSES = list(OUTLINES)[10:]
# of the radius of a shape, as a part of the image's shorter side
DEMO_RADIUS = (0.2, 0.3)
PRETRAIN_RADIUS = (0.15, 0.3)


def shape_mask(name, size, center, radius, tilt):
    """The anti-aliased mask of a shape, uint8 (height, width); `size` is (width, height)."""
    width, height = size
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(canvas)
    rotation = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    for i, outline in enumerate(OUTLINES[name]):
        corners = (outline @ rotation.T * radius + center) * SUPERSAMPLING
        draw.polygon([tuple(corner) for corner in corners], fill=255 if i == 0 else 0)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def gradient(rng, size, low, high, spread):
    """A linear gradient about a colour of `low` to `high`, randomly turned: float (height, width, 3)."""
    width, height = size
    angle = rng.uniform(0, TAU)
    across, down = np.linspace(-1, 1, width) * math.cos(angle), np.linspace(-1, 1, height) * math.sin(angle)
    middle = rng.uniform(low, high, 3)
    return _coloured(across + down[:, None], rng.uniform(-spread, spread, 3), middle)


def _coloured(plane, colour, middle=(0, 0, 0)):
    """middle + plane * colour, (height, width, 3). Broadcasting along so short an axis is slow."""
    return np.stack([base + plane * value for value, base in zip(colour, middle)], 2)


def busy_background(rng, size):
    """A gradient, blotches, stripes, and some strokes and dots, float (height, width, 3)."""
    width, height = size
    image = gradient(rng, size, 30, 120, spread=35)
    blotches = Image.fromarray(rng.normal(0, 1, (6, 6)).astype(np.float32))
    image += _coloured(np.asarray(blotches.resize(size, Image.Resampling.BICUBIC)), rng.normal(0, 16, 3))
    angle, period = rng.uniform(0, TAU), rng.uniform(6, 40)
    across, down = np.arange(width) * math.cos(angle), np.arange(height) * math.sin(angle)
    image += _coloured(np.sin((across + down[:, None]) * TAU / period), rng.normal(0, 10, 3))
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(3, 9)):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = rng.uniform(0.03, 0.05) * min(size)
        if rng.random() < 0.5:
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
        else:
            angle = rng.uniform(0, TAU)
            dx, dy = 3 * reach * np.array([math.cos(angle), math.sin(angle)])
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=3)
    return np.asarray(canvas, dtype=float)


def draw_image(name, rng, radius=DEMO_RADIUS):
    """Draw an image of the shape `name`, its radius in the range `radius`, with the numpy generator `rng`.

    Returns the image, uint8 (height, width, 3), and the mask, uint8 (height, width): 255 on the shape. The
    sides are 144 to 208 pixels; the shape lies inside the central square of 0.9 times the shorter side.
    """
    width, height = size = tuple(int(side) for side in rng.integers(144, 209, 2))
    side = min(size)
    radius = rng.uniform(*radius) * side
    reach = 0.45 * side - radius
    center = np.array([width / 2, height / 2]) + rng.uniform(-reach, reach, 2)
    mask = shape_mask(name, size, center, radius, rng.uniform(-MAX_TILT, MAX_TILT))

    background = busy_background(rng, size)
    surface = gradient(rng, size, 150, 240, spread=25)
    alpha = np.stack([mask / 255] * 3, 2)
    image = alpha * surface + (1 - alpha) * background + rng.normal(0, 6, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), ((mask > 127) * 255).astype(np.uint8)


def write_dataset(folder, classes=DEMO_CLASSES, radius=DEMO_RADIUS, train_per_class=100, val_per_class=40,
                  seed=0):
    """Draw a data set into `folder` (layout above) unless the same one is already there: see `drawn_once`."""
    draw = {"version": 1, "classes": list(classes), "radius": list(radius),
            "train_per_class": train_per_class, "val_per_class": val_per_class, "seed": seed}

    def fill(unfinished):
        (unfinished / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        for split, count in zip(SPLITS, (train_per_class, val_per_class)):
            jobs = [(label, i, name, radius, seed)
                    for label, name in enumerate(classes) for i in range(count)]
            draw_split(unfinished, split, _write_image, jobs)

    return drawn_once(folder, draw, {"classes.txt", "train", "val", "masks"}, fill)


def _write_image(folder, split, label, index, name, radius, seed):
    rng = np.random.default_rng([seed, SPLITS[split], label, index])
    save_pair(folder, split, f"{label}_{index}", *draw_image(name, rng, radius))


def save_pair(folder, split, stem, image, mask):
    """Save an image and its mask under the name `stem`."""
    Image.fromarray(image).save(folder / split / f"{stem}.jpg", quality=92)
    Image.fromarray(mask).save(folder / "masks" / split / f"{stem}.png")


def draw_split(folder, split, work, jobs):
    """Make the folders of a split, and list what `work(folder, split, *job)` returns for each of `jobs`."""
    (folder / split).mkdir()
    (folder / "masks" / split).mkdir(parents=True)
    with ProcessPoolExecutor(PROCESSES, initializer=keep_freed_memory) as pool:
        return list(pool.map(partial(work, folder, split), *zip(*jobs), chunksize=16))


def drawn_once(folder, draw, names, fill):
    """Have `fill(path)` draw a data set, which becomes `folder` when it is whole; returns `folder`.

    `draw` says what is drawn, and goes into draw.json: the same is not drawn again. A folder that holds more
    than the other entries `names` is never overwritten: BadInput.
    """
    folder, description = Path(folder), (json.dumps(draw, indent=1) + "\n").encode()

    def is_drawn():
        with contextlib.suppress(OSError):
            return (folder / "draw.json").read_bytes() == description

    if is_drawn():
        return folder
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if folder.exists() and entries not in (set(), {*names, "draw.json"}):
        raise BadInput(f"{folder} is not a drawn data set: name another folder")
    try:
        with folder_written_whole(folder) as unfinished:
            fill(unfinished)
            (unfinished / "draw.json").write_bytes(description)
            if folder.exists():
                shutil.rmtree(folder)
    except OSError:
        if not is_drawn():  # if it is, another process was faster
            raise
    return folder


def get_args_parser():
    parser = ArgumentParser(__doc__, prog="python -m datasets.shapes")
    add, count = parser.add_argument, number(int, low=1)
    add("--output", type=Path, required=True, metavar="DIR", help="where the data set goes")
    add("--classes", choices=["demo", "pretrain"], default="demo", help="which shapes (%(default)s)")
    add("--train-per-class", type=count, default=100, metavar="N", help="images to train on (%(default)s)")
    add("--val-per-class", type=count, default=40, metavar="N", help="images to validate on (%(default)s)")
    add("--seed", type=number(int, low=0), default=0, metavar="N", help="chooses the draw (%(default)s)")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    demo = args.classes == "demo"
    classes, radius = (DEMO_CLASSES, DEMO_RADIUS) if demo else (PRETRAIN_CLASSES, PRETRAIN_RADIUS)
    write_dataset(args.output, classes, radius, args.train_per_class, args.val_per_class, args.seed)
    print(f"{args.output}: {len(classes)} classes, {len(classes) * args.train_per_class} images to train on, "
          f"{len(classes) * args.val_per_class} to validate on")


if __name__ == "__main__":
    sys.exit(main())
