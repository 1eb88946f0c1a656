"""Attention maps over their photos."""

from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plots.style import downsampled, place, save

DIMMED = 0.35  # brightness of what the model did not see
# Sizes on the page, in inches.
LINE, GAP = 0.17, 0.1  # of a title
BAR_AND_LABELS = 1.1
LETTERS = 13  # of the bar's label, to an inch
LABEL = "attention of [CLS] to each patch"


@dataclass
class Seen:
    """A photo, uint8 (height, width, 3), and the (left, top, right, bottom) of what the model saw, in its pixels."""

    photo: np.ndarray
    box: tuple

    def limits(self):
        """The (left, right) and (bottom, top) that hold both, since padding may reach over the photo's edges."""
        height, width = self.photo.shape[:2]
        left, top, right, bottom = self.box
        return (min(0, left), max(width, right)), (max(height, bottom), min(0, top))

    def aspect(self):
        """Height by width of the limits."""
        (left, right), (bottom, top) = self.limits()
        return (bottom - top) / (right - left)


def draw_rows(rows, path, interpolation="bilinear", label=LABEL, heading=None, compressed=False):
    """Draw rows of a photo, the attention of its patches, and the one laid over the other, to a picture file.

    `rows` are (Seen, attention (H, W) with any scale, title); all share one colour scale. A map covers exactly what the
    model saw, and what was cropped away is dimmed. `interpolation` of the overlay is `bilinear`, smooth, or `nearest`,
    one colour a patch; the map alone always shows its patches. `compressed`: on a square-root scale, for rows of very
    different strength.
    """
    size = 1 if len(rows) <= 3 else 0.7
    heights = [size * min(6.5, max(1.6, 3.3 * seen.aspect())) for seen, _, _ in rows]
    above = [LINE * (title.count("\n") + 1) + GAP for _, _, title in rows]
    top = LINE * (heading.count("\n") + 1) + GAP if heading else 0
    # without a layout engine, which would take longer than all the rest
    figure = Figure(figsize=(size * 10 + 1, top + sum(above) + sum(heights) + GAP))
    width, height = figure.get_size_inches()
    across = (width - BAR_AND_LABELS - 4 * GAP) / 3
    norm = _norm([attention for _, attention, _ in rows], compressed)
    panels, y = [], top
    for (seen, attention, title), space, high in zip(rows, above, heights):
        y += space
        photo, alone, over = (place(figure, GAP + i * (across + GAP), y, across, high) for i in range(3))
        y += high
        pixels = downsampled(seen.photo, across)
        _show_photo(photo, seen, pixels)
        left, upper, right, lower = seen.box
        photo.add_patch(Rectangle((left, upper), right - left, lower - upper, fill=False, color="white", linestyle="--"))
        photo.set_title(title, fontsize=10, parse_math=False)  # a name may hold $
        drawn = _show_map(alone, seen, attention, norm, "nearest")
        _show_photo(over, seen, pixels)
        _show_map(over, seen, attention, norm, interpolation, transparent=True)
        _dim_unseen(over, seen)
        for axes in (photo, alone, over):
            _finish(axes, seen)
        panels.append((alone, over))
    panels[0][0].set_title("attention", fontsize=10)
    panels[0][1].set_title("over what the model saw", fontsize=10)
    long = max(0.85 * heights[0], 0.2 * (height - top))
    bar = place(figure, width - BAR_AND_LABELS, top + above[0] + (height - top - above[0] - GAP - long) / 2, long / 25, long)
    figure.colorbar(drawn, cax=bar).set_label(fill(label, round(long * LETTERS)), fontsize=9)
    bar.tick_params(labelsize=9)
    if heading:
        figure.suptitle(heading, y=1 - GAP / height, fontsize=11, parse_math=False)
    save(figure, path)


def draw_heads(seen, blocks, heading, path, interpolation="bilinear", label=LABEL):
    """Draw the attention of every head: a row a block, a column a head, all on one square-root scale.

    `blocks` are (name, attention (heads, H, W)). The heads of a single block lie over what the model saw; those of
    several are drawn alone, since an even attention, which the first blocks often have, would not show over a photo.
    """
    heads = max(len(attention) for _, attention in blocks)
    columns = min(heads, 6) if len(blocks) == 1 else heads  # the heads of a single block may wrap
    rows = -(-heads // columns) if len(blocks) == 1 else len(blocks)
    left, upper, right, lower = seen.box
    side = max(1.0, min(2.2, 14 / columns))
    size = (side * columns + 1.3, (side * (lower - upper) / (right - left) + 0.25) * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    norm = _norm([attention for _, attention in blocks], compressed=True)
    pixels = downsampled(seen.photo, side * seen.photo.shape[1] / (right - left))
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (name, attention) in enumerate(blocks):
        for head, one in enumerate(attention):
            axes = panels.flat[row * columns + head]
            axes.set_axis_on()
            if len(blocks) == 1:
                _show_photo(axes, seen, pixels)
            drawn = _show_map(axes, seen, one, norm, interpolation, transparent=len(blocks) == 1)
            axes.set(xlim=(left, right), ylim=(lower, upper), xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"head {head}", fontsize=8)
            if head == 0 and len(blocks) > 1:
                axes.set_ylabel(name, fontsize=8)
    figure.colorbar(drawn, ax=panels, shrink=max(0.3, 0.85 / rows**0.5), aspect=25, label=label)
    figure.suptitle(heading, fontsize=10, parse_math=False)
    save(figure, path)


def _show_photo(axes, seen, pixels):
    axes.imshow(pixels, extent=(0, seen.photo.shape[1], seen.photo.shape[0], 0), interpolation="bilinear")


def _norm(maps, compressed):
    top = max(attention.max() for attention in maps)
    return PowerNorm(0.5, 0, top) if compressed else Normalize(0, top)


def _show_map(axes, seen, attention, norm, interpolation, transparent=False):
    left, upper, right, lower = seen.box
    # where there is no attention the photo shows through
    alpha = 0.85 * np.sqrt(attention / norm.vmax) if transparent else None
    return axes.imshow(attention, interpolation=interpolation, alpha=alpha, cmap="inferno", norm=norm,
                       extent=(left, right, lower, upper))


def _dim_unseen(axes, seen):
    height, width = seen.photo.shape[:2]
    left, upper, right, lower = seen.box
    for x, y, across, down in ((0, 0, width, upper), (0, lower, width, height - lower),
                               (0, upper, left, lower - upper), (right, upper, width - right, lower - upper)):
        if across > 0 and down > 0:
            axes.add_patch(Rectangle((x, y), across, down, color="black", alpha=1 - DIMMED, linewidth=0))


def _finish(axes, seen):
    """After imshow, which sets limits of its own."""
    across, down = seen.limits()
    axes.set(xlim=across, ylim=down)
    for axis in (axes.xaxis, axes.yaxis):  # without ticks it would still take its time
        axis.set_visible(False)
