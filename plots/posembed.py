"""The grid of position-embedding similarities, and the numbers behind it."""

import textwrap
from math import ceil, log2

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots.style import legend_below, line_style, save

LETTERS = 30  # in a line below a mosaic
DENSEST = 170  # numbers at an axis, times their points
KINDS = {"same_row": "same\nrow", "same_column": "same\ncolumn", "elsewhere": "elsewhere"}


def mosaic(similarity):
    """All maps (i, j) of a similarity (H, W, H, W) as one image, NaN between them, and how many cells are."""
    height, width = similarity.shape[:2]
    gap = 1 if max(height, width) <= 16 else 2
    image = np.full((height, height + gap, width, width + gap), np.nan, dtype=np.float32)
    image[:, :height, :, :width] = similarity.transpose(0, 2, 1, 3)
    return image.reshape(height * (height + gap), width * (width + gap))[:-gap, :-gap], gap


def draw_mosaic(axes, similarity):
    """Draw the mosaic of a similarity (H, W, H, W), its rows and columns numbered. Returns the image."""
    height, width = similarity.shape[:2]
    values, gap = mosaic(similarity)
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
    for axis, patches, name in ((axes.xaxis, width, "column"), (axes.yaxis, height, "row")):
        ticks = range(0, patches, 2 ** max(0, ceil(log2(patches * rcParams["font.size"] / DENSEST))))
        axis.set_ticks([i * (patches + gap) + (patches - 1) / 2 for i in ticks], [str(i) for i in ticks])
        axis.set_label_text(f"{name} of the patch")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def draw_similarities(similarities, statistics, random, titles, path, remarks=()):
    """Draw one mosaic a model, side by side, on one colour scale from -1 to 1, to a picture file.

    Of each model are an array (H, W, H, W), a title, and the dict of
    `interpret.positions.position_statistics`, drawn below; `random` are such dicts of arrays over draws by
    name, drawn from the least to the most. Of each model `remarks` may have a line, which stands below its
    mosaic.
    """
    count = len(similarities)
    tallest = max(similarity.shape[0] / similarity.shape[1] for similarity in similarities)
    width = 5.2 * count + 1
    points = max(9, width)  # 6 and more on A4
    letters = (0.17 if any(remarks) else 0.13) * points  # above and below the mosaics
    heights = (min(13, max(3, 4.6 * tallest + letters)), points / 3)
    with rc_context({"font.size": points, "axes.titlesize": points, "legend.fontsize": points}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        _draw(figure, heights, similarities, statistics, random, titles, remarks)
        save(figure, path)


def _draw(figure, heights, similarities, statistics, random, titles, remarks):
    count = len(similarities)
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    panels = upper.subplots(1, count, squeeze=False)[0]
    for axes, similarity, title in zip(panels, similarities, titles):
        image = draw_mosaic(axes, similarity)
        axes.set_title(title, parse_math=False)  # a name may hold $
    for axes, remark in zip(panels, remarks):
        if remark:
            axes.set_xlabel(f"{axes.get_xlabel()}\n{textwrap.fill(remark, LETTERS)}")
    upper.colorbar(image, ax=panels, aspect=30, pad=0.02,
                   label="cosine similarity of the position embeddings")
    _draw_statistics(lower, statistics, random, [title.replace("\n", " ") for title in titles])


def _draw_statistics(figure, statistics, random, names):
    means, curve = figure.subplots(1, 2, width_ratios=(1, 1.3))
    bars = 0.8 / len(names)
    for i, (values, name) in enumerate(zip(statistics, names)):
        look, places = line_style(i), np.arange(3) + (i - (len(names) - 1) / 2) * bars
        means.bar(places, [values[kind] for kind in KINDS], bars, color=look["color"])
        curve.plot(np.arange(1, len(values["by_distance"]) + 1), values["by_distance"], **look,
                   label=_with_share(name, values["nearest_adjacent"]))
    for name, draws in random.items():
        values = [draws[kind] for kind in KINDS]
        means.bar(range(3), np.ptp(values, 1), 0.9, np.min(values, 1), color="gray", alpha=0.4)
        curves = draws["by_distance"]
        curve.fill_between(np.arange(1, curves.shape[1] + 1), curves.min(0), curves.max(0), color="gray",
                           alpha=0.4, label=_with_share(name, draws["nearest_adjacent"].mean()))
    means.set_xticks(range(3), list(KINDS.values()))
    means.set(xlabel="place of the other patch", ylabel="mean similarity")
    curve.set(xlabel="distance of the other patch, in patches", ylabel="mean similarity")
    curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, ncols=min(2, len(names)))
    for axes in (means, curve):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3, axis="y")


def _with_share(name, nearest_adjacent):
    return f"{name}\nmost similar one adjacent: {nearest_adjacent:.1%}"
