"""Reliability diagrams: accuracy over confidence."""

import numpy as np
from matplotlib.figure import Figure

from plots.style import COLOURS

CAPTION = ("Answers of all seeds in 15 bins of confidence, without bins of fewer than ten photos; a point's "
           "area is the number of answers. Below the dashed line the model is overconfident. ECE: expected "
           "calibration error, mean over seeds.")


def draw_reliability(curves):
    """A panel a setting, a point a bin. Returns the Figure.

    `curves` are (title, count (bins,), mean confidence (bins,), accuracy (bins,)).
    """
    columns = 2 if len(curves) == 4 else min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(4.5, 2.9 * columns), 3.1 * rows + 0.3), layout="constrained")
    cells = figure.subfigures(rows, columns, squeeze=False).flat  # in which titles wrap
    for cell, (title, count, confidence, accuracy) in zip(cells, curves):
        axes = cell.subplots()
        axes.set_title(title, fontsize=9, wrap=True, parse_math=False)
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        axes.plot(confidence, accuracy, color=COLOURS[0], linewidth=1)
        axes.scatter(confidence, accuracy, 6 + 250 * count / count.sum(), color=COLOURS[0], alpha=0.6,
                     linewidth=0, clip_on=False)
        ticks = np.linspace(0, 1, 3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=ticks, yticks=ticks)
        axes.grid(alpha=0.3)
        if not len(count):
            axes.text(0.5, 0.25, "fewer than ten photos\nin every bin", ha="center", va="center", fontsize=9)
    figure.supxlabel("confidence: the probability of the predicted class", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return figure
