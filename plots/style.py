"""What all figures share: the palette, the resolution, places on the page in inches, and how to save."""

import warnings
import zlib

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import fontManager
from PIL import Image

DPI = 200
# Okabe and Ito's palette for every kind of colour vision, without its yellow, which is too light for a line.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", ":", "-."]  # more lines than colours are dashed, then dotted
MARKERS = "os^Dv*PX"  # one more than colours, so that a colour comes back with another marker
# Runs of equal differences alone: a third of the time of the usual settings, for 3 % more size.
PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}
# matplotlib's own font has no Chinese, Japanese, Korean or Indian letters; those of the usual systems have
FALLBACKS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Droid Sans Fallback", "WenQuanYi Zen Hei",
             "Arial Unicode MS", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Noto Sans",
             "Noto Sans Devanagari", "Unifont"]
rcParams["font.family"] = [
    "DejaVu Sans", *(name for name in FALLBACKS if name in fontManager.get_font_names())]
warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # a letter of no font is a box


def line_style(i):
    """Colour, dashes and marker of the i-th of several lines."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)], "markersize": 3.5}


def colour_table(name):
    """The colours of a colour map, uint8 (256, 3)."""
    return np.rint(colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)


def place(figure, left, top, width, height):
    """Axes without ticks at a place on the page, in inches from its upper left corner."""
    page = figure.get_size_inches()
    axes = figure.add_axes((left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]))
    axes.set(xticks=[], yticks=[])
    return axes


def legend_below(figure, **options):
    """A legend below all axes of a figure; a name may hold $."""
    for text in figure.legend(loc="outside lower center", **options).get_texts():
        text.set_parse_math(False)


def downsampled(photo, inches):
    """A photo, uint8 (height, width, 3), in no more pixels than a width on the page has: more are slow."""
    height, width = photo.shape[:2]
    size = max(1, round(inches * DPI)), max(1, round(inches * DPI * height / width))
    if size[0] >= width:
        return photo
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))


def save(figure, path):
    """Write a matplotlib figure to a picture file, in the format of its name."""
    if path.suffix != ".png":
        figure.savefig(path, dpi=DPI)
        return
    figure.dpi = DPI  # `savefig` would go through all of it twice
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    size = canvas.get_width_height()
    Image.frombytes("RGB", size, canvas.buffer_rgba(), "raw", "RGBX").save(path, dpi=(DPI, DPI), **PNG)
