"""Whether attention lies on the object: shares, peaks, and the pointing game of words, judged by masks."""

from collections import namedtuple

import torch
import torch.nn.functional as F

from datasets.scenes import roles

# The pointing game of a token: whether the peak of its map lies on the object that it speaks of, grown by a
# cell, and the share of cells for which that would be true; the share of the attention on the object, and the
# share of cells that it covers; the share of the attention on the other object of the scene.
Pointing = namedtuple("Pointing", "hit chance mass area elsewhere")


def share_on(attention, inside, outside):
    """The share of attention (..., H, W) on an object and the share of the area that it covers.

    `inside` and `outside` (H, W) are the parts of each patch that the object and the background cover; what
    is in neither, a border of unsure pixels, counts for neither. The shares are (...) and a scalar.
    """
    on, off = (attention * inside).sum((-2, -1)), (attention * outside).sum((-2, -1))
    return on / (on + off), inside.sum() / (inside.sum() + outside.sum())


def peaks_on(attention, inside, counts=...):
    """Whether the most attended patch of a map (H, W) lies on the object, or next to a patch that it touches.

    `inside` (H, W) is the part of each patch that the object covers. Returns (bool, the share of patches for
    which it would be true: chance, of those that `counts`, bool (H, W), leaves).
    """
    near = F.max_pool2d((inside > 0).float()[None, None], 3, stride=1, padding=1)[0, 0]
    return bool(near.flatten()[attention.argmax()]), near[counts].mean().item()


def point(attention, inside, other):
    """The Pointing of a map (H, W), which sums to 1, by what an object and the other cover of each cell."""
    hit, chance = peaks_on(attention, inside)
    return Pointing(float(hit), chance, (attention * inside).sum().item(), inside.mean().item(),
                    (attention * other).sum().item())


def point_tokens(tokens, attention, groups):
    """The Pointing of each token of a drawn scene's caption by word class: a list of (class, Pointing).

    `attention` (T, H, W) holds the map of each token; `groups` are the parts of each cell (H, W) that the two
    groups of shapes cover, in the caption's order. A relation and the end speak of both. An article counts
    for its class, and for the phrase that it begins.
    """
    first, second = groups
    objects = {0: (first + second, torch.zeros_like(first)), 1: (first, second), 2: (second, first)}
    pointings = []
    for (word_class, group), cells in zip(roles(tokens), attention):
        pointing = point(cells, *objects[group])
        pointings.append((word_class, pointing))
        if word_class == "article":
            pointings.append((f"article of the {('first', 'second')[group - 1]}", pointing))
    return pointings


def pointing_table(pointings):
    """The number of tokens and the mean Pointing of each word class in alphabetical order, as dicts."""
    by_class = {}
    for word_class, pointing in pointings:
        by_class.setdefault(word_class, []).append(pointing)
    return {word_class: {"tokens": len(rows), **Pointing(*torch.tensor(rows).mean(0).tolist())._asdict()}
            for word_class, rows in sorted(by_class.items())}
