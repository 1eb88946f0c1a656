"""How fast a grid of many maps is drawn, against one subplot a map."""

import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.rows import compare, pace
from plots.posembed import draw_mosaic
from plots.style import save

pyplot.switch_backend("Agg")


def one_image(similarity, path):
    figure = Figure(figsize=(12, 12))
    axes = figure.subplots()
    figure.colorbar(draw_mosaic(axes, similarity), ax=axes)
    save(figure, path)


def subplots(similarity, path):
    figure, panels = pyplot.subplots(*similarity.shape[:2], figsize=(12, 12))
    for axes, patch in zip(panels.flat, similarity.reshape(-1, *similarity.shape[2:])):
        image = axes.imshow(patch, vmin=-1, vmax=1)
        axes.axis("off")
    figure.colorbar(image, ax=panels)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def grid(draw, side):
    """(Figures/s, None) of a grid of side x side maps."""
    similarity = np.random.default_rng(0).uniform(-1, 1, [side] * 4)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "grid.png"
        draw(similarity[:2, :2, :2, :2], path)  # the first figure loads the fonts
        return pace(1, draw, similarity, path)


def rows(options):
    """The rows of the table."""
    side = 4 if options.small else 24
    return compare(options.repeats, f"grid of {side} x {side} maps", "figures/s", (grid, one_image, side),
                   ("one subplot a map", 15, grid, subplots, side))
