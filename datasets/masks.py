"""Masks that say where the object of a photo is."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import BadInput
from common.files import as_on_disk


def find_mask(folder, stem):
    """The path of a photo's mask. BadInput for a missing one."""
    path = as_on_disk(Path(folder) / f"{stem}.png")
    if not path.is_file():
        raise BadInput(f"{path} does not exist: each photo needs a mask, named like it")
    return path


def find_masks(folder, names):
    """The paths of the masks of photos, `SUBFOLDER/STEM` or `STEM`: NAME.png, or STEM.png where stems differ.

    BadInput for a missing one.
    """
    stems = [Path(name).name for name in names]
    if len(set(stems)) < len(stems) or as_on_disk(Path(folder) / f"{names[0]}.png").is_file():
        stems = names
    return [find_mask(folder, stem) for stem in stems]


def load_mask(path, size):
    """(object, background), bool (height, width), in the mask of a photo of `size` (width, height).

    Two kinds are read: the trimaps of Oxford-IIIT Pet (1 object, 2 background, 3 a border, in neither), and
    masks that are 0 on the background. Raises BadInput for anything else, and for another size.
    """
    values = _read(path, size)
    if values.min() > 0 and values.max() <= 3:
        return values == 1, values == 2
    return values > 0, values == 0


def load_groups(path, size):
    """The mask of a drawn scene of (width, height), as `load_mask`: bool (height, width) for each group."""
    values = _read(path, size)
    return values == 1, values == 2


def _read(path, size):
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except OSError as error:
        raise BadInput(f"{path} is not a whole image: masks are png files") from error
    if values.ndim != 2:
        raise BadInput(f"{path} is not a mask: it wants one channel, 0 on the background, or a trimap")
    if values.shape != size[::-1]:
        height, width = values.shape
        raise BadInput(f"{path} is {width}x{height} and its photo {size[0]}x{size[1]}: masks must fit")
    return values


def patch_cover(mask, box, grid):
    """The part of each patch that a mask covers, by area: bool (height, width) -> float32 `grid`, (H, W).

    `box` is the (left, top, right, bottom) of what the model takes in, in pixels of the photo, and the
    patches divide it evenly. Where it reaches over the edge of the photo, padding, nothing is covered.
    """
    left, top, right, bottom = box
    rows, columns = _overlap(top, bottom, grid[0], len(mask)), _overlap(left, right, grid[1], mask.shape[1])
    return (rows @ mask @ columns.T).astype(np.float32)


def _overlap(low, high, parts, pixels):
    """The share of each of the equal parts from `low` to `high` that each pixel takes: (parts, pixels)."""
    edges, pixel = np.linspace(low, high, parts + 1)[:, None], np.arange(pixels)
    covered = np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
    return covered / (high - low) * parts
