"""Confusion matrices."""

import numpy as np
from matplotlib.figure import Figure

CAPTION = "Numbers: images, mean over seeds. Colour: share of the true class's images."
LONGEST_NAME = 28  # letters


def draw_confusion(counts, classes, names, title):
    """A row a true class, a column a predicted one, for the indices `classes`. Returns the Figure.

    `counts` (all classes, all classes) are of images or their means over runs, `names` those of all classes.
    """
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(1, keepdims=True)  # NaN for a class without images: it stays white
    if len(classes) < len(names):
        title += f"; the {len(classes)} of {len(names)} classes with the most mistakes"
    counts, shares = counts[np.ix_(classes, classes)], shares[np.ix_(classes, classes)]
    side = max(4.0, 0.27 * len(classes) + 2.4)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True, parse_math=False)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for i, j in np.argwhere(counts > 0):
        axes.text(j, i, f"{round(counts[i, j], 1):g}", ha="center", va="center",
                  fontsize=6 if len(classes) > 20 else 8, color="white" if shares[i, j] > 0.55 else "black")
    names = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 1] + "…"
             for name in (names[i] for i in classes)]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, label="share of the true class's images")
    return figure
