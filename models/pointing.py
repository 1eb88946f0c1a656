"""Does the region that a word looks at reflect the word? The pointing game and the attention mass, with masks as the judge."""

from dataclasses import dataclass

import torch

from models.attention import peaks_on


@dataclass
class Pointing:
    """One token's map against the object that the token speaks of.

    hit: the peak lies on the object, grown by a cell. chance: the share of cells for which that would be true. mass: the
    share of the attention on the object. area: the share of cells that it covers. elsewhere: the share of the attention on the
    other object of the scene.
    """

    hit: float
    chance: float
    mass: float
    area: float
    elsewhere: float


def point(attention, inside, other):
    """The Pointing of a map (H, W), which sums to 1, for an object and the other one.

    `inside` and `other` (H, W) are the parts of each cell that they cover, as `datasets.masks.patch_cover` says.
    """
    hit, chance = peaks_on(attention, inside)
    return Pointing(float(hit), chance, (attention * inside).sum().item(), inside.mean().item(),
                    (attention * other).sum().item())


def mean(pointings):
    """The mean of each quantity over some Pointings."""
    rows = torch.tensor([[p.hit, p.chance, p.mass, p.area, p.elsewhere] for p in pointings])
    return Pointing(*rows.mean(0).tolist())
