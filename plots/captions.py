"""A caption and the map of each of its tokens over the photo."""

import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from plots.attention import show_map, show_photo
from plots.style import DPI, downsampled, place, save

# Sizes on the page, in inches.
PAGE, MARGIN = (11, 14.5), 0.35  # a page is higher only where small panels of many tokens do not fit
ACROSS = PAGE[0] - 2 * MARGIN
PHOTO = (5, 3.2)  # the photo beside the caption at most
GAP, GUTTER = 0.3, 0.1  # the latter between panels
ABOVE, BELOW, BETWEEN = 0.28, 0.24, 0.14  # a panel's title, its probability, and the space to the next row
BAR, BAR_AND_LABEL = (3.6, 0.13), 0.8
LETTER = 1.2 / 72  # the widest letter, for a font of one point
MOST_COLUMNS = 8


def draw_caption(photo, box, maps, titles, probabilities, caption, heading, label, path):
    """Draw a photo with its caption, and below it a panel for each token, to a PNG file.

    `photo` is uint8 (height, width, 3); `box` (left, top, right, bottom), in its pixels, is what the cells of
    the `maps` (T, H, W), at least 0, divide evenly. Each map has one of the `titles` and `probabilities`.
    `caption` and `heading` stand beside the photo, large and small; `label` says what the maps are.
    """
    aspect, norm = photo.shape[0] / photo.shape[1], PowerNorm(0.5, 0, maps.max())
    across = min(PHOTO[0], PHOTO[1] / aspect)
    left = MARGIN + across + GAP
    figure = Figure(figsize=PAGE, dpi=DPI)
    write = _writer(figure)
    bottom = MARGIN + max(across * aspect, _write_caption(write, left, caption, heading) + BAR_AND_LABEL)
    _draw_panels(figure, write, bottom + GAP, photo, box, maps, titles, probabilities, norm)
    show_photo(place(figure, MARGIN, MARGIN, across, across * aspect), photo, downsampled(photo, across))
    bar = place(figure, left, bottom - BAR_AND_LABEL, min(BAR[0], PAGE[0] - MARGIN - left), BAR[1])
    figure.colorbar(ScalarMappable(norm, "inferno"), bar, orientation="horizontal", ticks=MaxNLocator(4),
                    format=FuncFormatter(lambda x, _: f"{x:.3g}"))
    bar.tick_params(labelsize=8)
    label += f"; a map sums to 1 over its {maps.shape[1]} x {maps.shape[2]} cells; colours by the square root"
    write(label, left, bottom - BAR_AND_LABEL + 0.4, size=8, color="0.4", wrap=True)
    save(figure, path)


def _write_caption(write, left, caption, heading):
    """Write both from `left` to the right edge. Returns how high they are with the gap below, in inches."""
    room = PAGE[0] - MARGIN - left
    _fit(write(heading, left, MARGIN, color="0.4"), room, [10])
    size = 17 if len(caption) < 120 else 13 if len(caption) < 300 else 10
    # matplotlib breaks lines at spaces alone, and some scripts have none; it measures what $ encloses as math
    breakable = re.sub(rf"\S{{{int(room / size / LETTER)}}}(?=\S)", "\\g<0>\n", caption)
    text = write(breakable.replace("$", r"\$"), left, MARGIN + GAP, size=size, wrap=True, parse_math=True)
    return GAP + text.get_window_extent().height / DPI + GAP


def _draw_panels(figure, write, start, photo, box, maps, titles, probabilities, norm):
    """Draw a panel for each map, `start` inches below the page's upper edge, and end the page below them."""
    height, width = photo.shape[:2]
    aspect = height / width
    columns, panel = panels(len(titles), aspect, PAGE[1] - MARGIN - start)
    row, pitch = ABOVE + panel * aspect + BELOW + BETWEEN, (ACROSS + GUTTER) / columns
    figure.set_size_inches(PAGE[0], start + -(-len(titles) // columns) * row - BETWEEN + MARGIN)
    small, (left, upper, right, lower) = downsampled(photo, panel), box  # its outer cells go on to the edges
    x, y = (right - left) / maps.shape[2], (lower - upper) / maps.shape[1]
    box, maps = (left - x, upper - y, right + x, lower + y), np.pad(maps, ((0, 0), (1, 1), (1, 1)), "edge")
    for i, (attention, title, probability) in enumerate(zip(maps, titles, probabilities)):
        middle = MARGIN + (i % columns + 0.5) * pitch - GUTTER / 2
        top = start + i // columns * row + ABOVE
        axes = place(figure, middle - panel / 2, top, panel, panel * aspect)
        show_photo(axes, photo, small)
        show_map(axes, box, attention, norm, over_photo=True)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        _fit(write(title, middle, top - 0.06, ha="center", va="bottom"), pitch - GUTTER, range(11, 5, -1))
        write(f"p = {probability:.2f}" if probability >= 0.005 else "p < 0.01", middle,
              top + panel * aspect + 0.05, size=8, color="0.4", ha="center")


def panels(count, aspect, room):
    """How many panels of an aspect (height by width) stand in a row, and how wide they are, in inches.

    Nearly as large as fits into `room`, the height that is left on the page, within reason.
    """
    least, most = 1 / aspect**0.5, min(2.2 / aspect**0.5, PHOTO[1] / aspect)
    columns = np.arange(1, MOST_COLUMNS + 1)
    limit = np.minimum(most, (ACROSS + GUTTER) / columns - GUTTER)
    fitting = np.minimum(limit, (room / np.ceil(count / columns) - ABOVE - BELOW - BETWEEN) / aspect)
    i = np.flatnonzero(fitting >= fitting.max() - 0.1 * abs(fitting.max()))[-1]
    return columns[i], min(max(fitting[i], least), limit[i])


def _writer(figure):
    """A function that writes text at (left, top), in inches from the upper left corner of the page."""
    FigureCanvasAgg(figure)  # measures text
    body = figure.subfigures(1, 2, width_ratios=(PAGE[0] - MARGIN, MARGIN))[0]  # lines wrap at its edge
    corner = figure.dpi_scale_trans + ScaledTranslation(0, 1, figure.transFigure)

    def write(text, left, top, **style):
        style = {"va": "top", "parse_math": False, **style}  # names may hold $
        return body.text(left, -top, text, transform=corner, **style)

    return write


def _fit(text, room, sizes):
    """Give a Text the first of the sizes at which `room` inches hold it; at the last one, shorten it."""
    for size in sizes:
        text.set_size(size)
        if text.get_window_extent().width <= room * DPI:
            return
    while text.get_window_extent().width > room * DPI:
        text.set_text(text.get_text().removesuffix("…")[:-1] + "…")
