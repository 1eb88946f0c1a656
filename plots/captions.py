"""A caption and the map of each of its tokens over the photo."""

import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ticker import FuncFormatter, MaxNLocator

from plots.style import DPI, downsampled, place, save

# Sizes on the page, in inches.
PAGE, MARGIN = (11, 14.5), 0.35  # a page is higher only where small panels of many tokens do not fit
ACROSS = PAGE[0] - 2 * MARGIN
PHOTO = (5, 3.2)  # the photo beside the caption at most
GAP, GUTTER = 0.3, 0.1  # the latter between panels
ABOVE, BELOW, BETWEEN = 0.28, 0.24, 0.14  # a panel's title, its probability, and the space to the next row
BAR, BAR_AND_LABEL = (3.6, 0.13), 0.8
MOST_COLUMNS = 8
# matplotlib's own font has no Chinese, Japanese, Korean or Indian letters; those of the usual systems have
FALLBACKS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Droid Sans Fallback", "WenQuanYi Zen Hei", "Arial Unicode MS",
             "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Noto Sans", "Noto Sans Devanagari", "Unifont"]


def draw_caption(photo, box, maps, titles, probabilities, caption, heading, label, path):
    """Draw a photo with its caption, and below it a panel for each token, to a PNG file.

    Args:
        photo: uint8 (height, width, 3).
        box: (left, top, right, bottom) in the photo's pixels of what the cells of a map divide evenly.
        maps: (T, H, W), at least 0; all share one colour scale.
        titles, probabilities: T of each, one for each panel.
        caption, heading: text beside the photo, large and small.
        label: what the maps are, for the colour bar.
    """
    height, width = photo.shape[:2]
    aspect = height / width
    figure = Figure(figsize=PAGE, dpi=DPI)
    family = ["DejaVu Sans", *(name for name in FALLBACKS if name in fontManager.get_font_names())]
    write = _Writer(figure, family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # a letter of no font is drawn as a box

        # The photo and, on its right, the caption over the colour bar. The caption decides how high they are.
        across = min(PHOTO[0], PHOTO[1] / aspect)
        start = MARGIN + across + GAP
        room = PAGE[0] - MARGIN - start
        size = 17 if len(caption) < 120 else 13 if len(caption) < 300 else 10
        lines = write.wrapped(caption, size, room)
        label = write.wrapped(f"{label}; a map sums to 1 over its {maps.shape[1]} x {maps.shape[2]} cells", 8, room)
        caption_height = write.height(lines, size)
        top_part = max(across * aspect, GAP + caption_height + GAP + BAR_AND_LABEL)
        columns, panel = panels(len(titles), aspect, PAGE[1] - 2 * MARGIN - top_part - GAP)
        row = ABOVE + panel * aspect + BELOW + BETWEEN
        figure.set_size_inches(PAGE[0], 2 * MARGIN + top_part + GAP + -(-len(titles) // columns) * row - BETWEEN)

        _show(place(figure, MARGIN, MARGIN, across, across * aspect), downsampled(photo, across), photo)
        write(write.shortened(heading, 10, room), 10, start, MARGIN, color="0.4")
        write(lines, size, start, MARGIN + GAP)
        norm = PowerNorm(0.5, 0, maps.max())
        bar_top = MARGIN + top_part - BAR_AND_LABEL
        bar = figure.colorbar(ScalarMappable(norm, "inferno"), place(figure, start, bar_top, min(BAR[0], room), BAR[1]),
                              orientation="horizontal", ticks=MaxNLocator(4),
                              format=FuncFormatter(lambda x, _: f"{x:.3g}"))
        bar.ax.tick_params(labelsize=8)
        write(label, 8, start, bar_top + 0.4, color="0.4")

        pitch, small = (ACROSS + GUTTER) / columns, downsampled(photo, panel)
        shape = tuple(max(1, round(inches * DPI)) for inches in (panel * aspect, panel))
        for i, (one, title, probability) in enumerate(zip(maps, titles, probabilities)):
            middle = MARGIN + (i % columns + 0.5) * pitch - GUTTER / 2
            top = MARGIN + top_part + GAP + i // columns * row + ABOVE
            axes = place(figure, middle - panel / 2, top, panel, panel * aspect)
            _show(axes, small, photo)
            fine = upsampled(one, box, (width, height), shape)
            # where there is no attention the photo shows through
            axes.imshow(fine, norm=norm, cmap="inferno", alpha=0.85 * np.sqrt(fine / norm.vmax),
                        interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
            title, title_size = write.fitted(title, (11, 10, 9, 8, 7, 6), pitch - GUTTER)
            write(title, title_size, middle, top - 0.06, ha="center", va="bottom")
            write(f"p = {probability:.2f}" if probability >= 0.005 else "p < 0.01", 8, middle,
                  top + panel * aspect + 0.05, color="0.4", ha="center")
        save(figure, path)


def panels(count, aspect, room):
    """How many panels of an aspect (height by width) stand in a row, and how wide they are: nearly as large as fits
    into `room`, the height that is left on the page, within reason."""
    least, most = 1 / aspect**0.5, min(2.2 / aspect**0.5, PHOTO[1] / aspect)

    def width(columns):
        row = room / -(-count // columns)
        return min(most, (ACROSS + GUTTER) / columns - GUTTER, (row - ABOVE - BELOW - BETWEEN) / aspect)

    widest = max(map(width, range(1, MOST_COLUMNS + 1)))
    columns = max(columns for columns in range(1, MOST_COLUMNS + 1) if width(columns) >= widest - 0.1 * abs(widest))
    return columns, min(max(width(columns), least), most, (ACROSS + GUTTER) / columns - GUTTER)


def upsampled(attention, box, size, shape):
    """A map (H, W) whose cells divide `box` of a photo of `size` (width, height), on `shape` pixels of the whole photo.

    Linear between the centres of the cells, constant beyond the first and the last.
    """
    def weights(cells, low, high, side, pixels):
        centres = low + (np.arange(cells) + 0.5) * (high - low) / cells
        at = (np.arange(pixels) + 0.5) * side / pixels
        return np.stack([np.interp(at, centres, one) for one in np.eye(cells)], 1)

    (left, top, right, bottom), (width, height) = box, size
    rows = weights(attention.shape[0], top, bottom, height, shape[0])
    columns = weights(attention.shape[1], left, right, width, shape[1])
    return rows @ attention @ columns.T


def _show(axes, pixels, photo):
    axes.imshow(pixels, extent=(0, photo.shape[1], photo.shape[0], 0), aspect="auto")


class _Writer:
    """Writes text on a figure, at places in inches from the upper left corner, and measures it."""

    def __init__(self, figure, family):
        self.figure, self.family = figure, family
        self.renderer = FigureCanvasAgg(figure).get_renderer()

    def __call__(self, text, size, left, top, va="top", **style):
        page = self.figure.get_size_inches()
        return self.figure.text(left / page[0], 1 - top / page[1], text, fontsize=size, family=self.family, va=va,
                                parse_math=False, **style)  # it may hold $

    def width(self, text, size):
        properties = FontProperties(family=self.family, size=size)
        return self.renderer.get_text_width_height_descent(text, properties, ismath=False)[0] / DPI

    def height(self, text, size):
        measured = self(text, size, 0, 0)
        found = measured.get_window_extent(self.renderer).height / DPI
        measured.remove()
        return found

    def shortened(self, text, size, room):
        """The text, or as much of it as fits into a width."""
        if self.width(text, size) <= room:
            return text
        return next(cut for end in range(len(text) - 1, -1, -1) if self.width(cut := text[:end] + "…", size) <= room)

    def fitted(self, text, sizes, room):
        """The text and the largest size at which it fits into a width, shortened if none does."""
        size = next((size for size in sizes if self.width(text, size) <= room), sizes[-1])
        return self.shortened(text, size, room), size

    def wrapped(self, text, size, room):
        """The text in lines of a width at most."""
        lines = [""]
        for word in text.split():
            if lines[-1] and self.width(f"{lines[-1]} {word}", size) <= room:
                lines[-1] += f" {word}"
                continue
            lines.append("")
            for letter in word:  # a word longer than a line goes on in the next
                if self.width(lines[-1] + letter, size) > room:
                    lines.append("")
                lines[-1] += letter
        return "\n".join(lines[1:])
