"""Attention maps over their photos."""

import textwrap
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plots.style import COLOURS, downsampled, place, save

DIMMED = 0.35  # brightness of what the model did not see
COLUMNS = 5  # of a photo and its blocks
LINE, LETTER, NUMBERS = 0.017, 0.0075, 0.055  # inches for each point of a letter; the last, numbers at a bar
GAP, BAR_AND_LABELS = 0.1, 1.4  # inches


@dataclass
class ModelView:
    """A photo, uint8 (height, width, 3), and the (left, top, right, bottom) of what the model saw in it.

    The title is in colour where the model is `mistaken` in its class. Patches in `framed`, bool (H, W), get a
    thin frame, and what is `outlined`, bool (height, width), a white line round it.
    """

    photo: np.ndarray
    box: tuple
    mistaken: bool = False
    framed: np.ndarray | None = None
    outlined: np.ndarray | None = None

    def limits(self):
        """(left, right), (bottom, top) of both: where the model pads, the box reaches over the edge."""
        height, width = self.photo.shape[:2]
        left, top, right, bottom = self.box
        return (min(0, left), max(width, right)), (max(height, bottom), min(0, top))


def bar_label(blocks, heads, block=-1, rollout=False, without_sinks=False):
    """What is said of the maps of one of the `blocks` (a number), of `all`, or of attention rollout."""
    what, which = "attention of [CLS] to each patch", f"blocks 0 to {blocks - 1}"
    if rollout:
        what = "attention rollout from [CLS] to each patch"
    elif block == "all":
        which = "each block on its own colour scale"
    else:
        which = f"block {block % blocks} of 0 to {blocks - 1}"
    return f"{what}, {which}, mean of {heads} head{'s' * (heads > 1)}{', without sinks' * without_sinks}"


def draw_rows(rows, label, path, scale_each=False):
    """Draw rows of a photo, the attention of its patches, and the one laid over the other, to a picture file.

    `rows` are (ModelView, attention (H, W), title), on one colour scale, or each on its own. What was cropped
    away is dimmed.
    """
    size, points, heights = (1, 11, []) if len(rows) <= 3 else (0.7, 8, [])  # 6 points and more on A4
    width = size * 10 + 1
    across = (width - BAR_AND_LABELS - 4 * GAP) / 3
    for view, _, _ in rows:
        (left, right), (bottom, top) = view.limits()
        heights.append(min(6.5 * size, max(1.6 * size, across * (bottom - top) / (right - left))))
    titles = [_wrapped(title, across, points) for _, _, title in rows]
    above = [LINE * points * (title.count("\n") + 1) + GAP for title in titles]
    height = sum(above) + sum(heights) + GAP
    # without a layout engine, which would take longer than all the rest
    figure = Figure(figsize=(width, height))
    brightest, y, bars = max(attention.max() for _, attention, _ in rows), 0, []
    for (view, attention, _), title, title_height, high in zip(rows, titles, above, heights):
        y += title_height
        panels = [place(figure, GAP + i * (across + GAP), y, across, high) for i in range(3)]
        norm = Normalize(0, attention.max() if scale_each else brightest)
        bars.append((_draw_row(panels, view, attention, norm, across), y, high))
        colour = COLOURS[1] if view.mistaken else "black"
        panels[0].set_title(title, fontsize=points, color=colour, parse_math=False)  # a name may hold $
        y += high
    figure.axes[1].set_title("attention", fontsize=points)
    figure.axes[2].set_title("over what the model saw", fontsize=points)
    middle, long = (above[0] + height - GAP) / 2, max(0.85 * heights[0], 0.2 * height)
    if not scale_each:
        bars = [(bars[0][0], middle - long / 2, long)]
    for image, top, high in bars:
        bar = place(figure, width - BAR_AND_LABELS, top, long / 25, high)
        figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=points)
    label = _wrapped(label, 2 * (height - middle), points)
    beside = width - BAR_AND_LABELS + long / 25 + NUMBERS * points
    leftmost = width - GAP - LINE * points * (label.count("\n") + 1)
    figure.text(min(beside, leftmost) / width, 1 - middle / height, label, rotation=90, fontsize=points,
                verticalalignment="center")
    save(figure, path)


def draw_blocks(view, maps, sinks, shares, title, label, path):
    """Draw a photo, and over it the map (H, W) of each block, each on its own scale, to a picture file.

    `view` is a ModelView, of which the `sinks`, bool (layers, H, W), of each block are framed; `shares`, if
    there are any, stand above the maps, and a `label` below says what all are.
    """
    width, points = 10, 11
    across = (width - (COLUMNS + 1) * GAP) / COLUMNS
    (left, right), (bottom, top) = view.limits()
    high = min(6.5, max(1.2, across * (bottom - top) / (right - left)))
    title, label = _wrapped(title, width, points), _wrapped(label, width, points)
    above = LINE * points * (title.count("\n") + 1) + GAP
    line, rows = LINE * points + GAP, -(-(1 + len(maps)) // COLUMNS)
    height = above + rows * (line + high) + LINE * points * (label.count("\n") + 1) + GAP
    figure = Figure(figsize=(width, height))
    pixels = downsampled(view.photo, across)
    names = ["", *(f"block {number}" for number in range(len(maps)))]
    for i, share in enumerate(shares, 1):
        names[i] += f": {share:.0%}"
    for i, name in enumerate(names):
        row, column = divmod(i, COLUMNS)
        panel = place(figure, GAP + column * (across + GAP), above + row * (line + high) + line, across, high)
        show_photo(panel, view.photo, pixels)
        if i:
            show_map(panel, view.box, maps[i - 1], Normalize(0, maps[i - 1].max()), over_photo=True)
            _dim_unseen(panel, view)
            _mark(panel, replace(view, framed=sinks[i - 1]), across)
        panel.set_title(name, fontsize=points)
        panel.set(xlim=(left, right), ylim=(bottom, top))
        panel.set_axis_off()
    figure.text(GAP / width, 1 - GAP / height, title, fontsize=points, verticalalignment="top",
                color=COLOURS[1] if view.mistaken else "black", parse_math=False)
    figure.text(GAP / width, GAP / height, label, fontsize=points, verticalalignment="bottom")
    save(figure, path)


def _wrapped(title, inches, points):
    """The title with its lines broken where they would not fit into a width on the page."""
    letters = int(inches / (LETTER * points))
    return "\n".join(textwrap.fill(line, letters) for line in title.split("\n"))


def _draw_row(panels, view, attention, norm, inches):
    """Draw a photo, its map, and both into three axes, `inches` wide. Returns the image of the map."""
    photo, alone, over = panels
    pixels = downsampled(view.photo, inches)
    left, top, right, bottom = view.box
    show_photo(photo, view.photo, pixels)
    photo.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="white", ls="--"))
    image = show_map(alone, view.box, attention, norm)
    show_photo(over, view.photo, pixels)
    show_map(over, view.box, attention, norm, over_photo=True)
    _dim_unseen(over, view)
    for axes in (alone, over):
        _mark(axes, view, inches)
    across, down = view.limits()
    for axes in panels:
        axes.set(xlim=across, ylim=down)  # after imshow, which sets limits of its own
        for axis in (axes.xaxis, axes.yaxis):  # without ticks it would still take its time
            axis.set_visible(False)
    return image


def _mark(axes, view, inches):
    """Frame and outline what a ModelView names."""
    if view.framed is not None:
        left, top, right, bottom = view.box
        high, wide = (bottom - top) / view.framed.shape[0], (right - left) / view.framed.shape[1]
        for row, column in np.argwhere(view.framed):
            axes.add_patch(Rectangle((left + column * wide, top + row * high), wide, high, fill=False,
                                     color="deepskyblue", lw=0.8))
    if view.outlined is not None and 0 < view.outlined.mean() < 1:
        height, width = view.outlined.shape
        axes.contour(downsampled(view.outlined * np.uint8(255), inches), [127.5], origin="upper",
                     extent=(0, width, height, 0), colors="white", linewidths=0.8)


def show_photo(axes, photo, pixels):
    """Draw a photo by its `downsampled` pixels: places in the axes are in the photo's own."""
    axes.imshow(pixels, extent=(0, photo.shape[1], photo.shape[0], 0), interpolation="bilinear")


def show_map(axes, box, attention, norm, over_photo=False):
    """A map alone shows its patches; over a photo it is smooth and, where it is weak, transparent."""
    left, top, right, bottom = box
    alpha = 0.85 * np.sqrt(attention / norm.vmax) if over_photo else None
    return axes.imshow(attention, interpolation="bilinear" if over_photo else "nearest", alpha=alpha,
                       cmap="inferno", norm=norm, extent=(left, right, bottom, top))


def _dim_unseen(axes, view):
    height, width = view.photo.shape[:2]
    left, top, right, bottom = view.box
    for x, y, to_x, to_y in ((0, 0, width, top), (0, bottom, width, height), (0, top, left, bottom),
                             (right, top, width, bottom)):
        if x < to_x and y < to_y:
            axes.add_patch(Rectangle((x, y), to_x - x, to_y - y, color="black", alpha=1 - DIMMED, lw=0))
