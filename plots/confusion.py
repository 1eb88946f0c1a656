"""Confusion matrices."""

import numpy as np
from matplotlib.figure import Figure

CAPTION = ("Colour: share of the true class's images. Numbers: images, mean over seeds; of more than ten "
           "classes those of the most confused pairs have numbers, below.")
LONGEST_NAME = 28  # letters
WIDTH, FONT = 9, 9  # inches and points: on A4, 6.3 inches wide, letters have 6.3 points


def draw_confusion(counts, classes, most_confused, names, title):
    """A row a true class, a column a predicted one, for the indices `classes`. Returns the Figure.

    `counts` (all classes, all classes) are of images or their means over runs, `names` those of all classes.
    Numbers stand in a second matrix, of the classes `most_confused`, or in the first where it has no more.
    """
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)  # NaN for a class without images: it stays white
    if len(classes) < len(names):
        title += f"; the {len(classes)} of {len(names)} classes confused most"
    matrices = [most_confused] if len(classes) <= len(most_confused) else [classes, most_confused]
    heights = [2.4 + 0.145 * len(classes), max(4, 2.4 + 0.3 * len(most_confused))][-len(matrices):]
    figure = Figure(figsize=(min(WIDTH, sum(heights) + 1), sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True, parse_math=False)
    all_axes = figure.subplots(len(matrices), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, indices in zip(all_axes, matrices):
        cells = np.ix_(indices, indices)
        image = _draw_matrix(axes, shares[cells], [names[i] for i in indices])
    for i, j in np.argwhere(counts[cells] > 0):
        axes.text(j, i, f"{round(counts[cells][i, j], 1):g}", ha="center", va="center", fontsize=FONT,
                  color="white" if shares[cells][i, j] > 0.55 else "black")
    figure.colorbar(image, ax=all_axes.tolist(), shrink=0.6, aspect=30,
                    label="share of the true class's images")
    return figure


def _draw_matrix(axes, shares, names):
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    names = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 1] + "…" for name in names]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=FONT, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=FONT, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    return image
