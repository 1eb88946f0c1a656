"""Accuracy over learning rate, of settings that are equal in all else."""

import numpy as np
from matplotlib.figure import Figure

from plots.curves import add_legend_below
from plots.style import line_style

CAPTION = "Line: mean over seeds. Bar: range over seeds."
PANELS = {"val": "accuracy on val", "held_out": "accuracy on the held-out part"}


def draw_learning_rates(sweeps):
    """A panel for the accuracy on val and, where there is one, for the held-out accuracy. Returns the Figure.

    `sweeps` has a dict a line: `name`, `rates`, and as `val` and `held_out` (or None) the runs of each rate.
    """
    panels = [part for part in PANELS if any(sweep[part] is not None for sweep in sweeps)]
    figure = Figure(figsize=(1.5 + 4.25 * len(panels), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rates = sorted({rate for sweep in sweeps for rate in sweep["rates"]})
    for axes, part in zip(all_axes, panels):
        for i, sweep in enumerate(sweeps):
            if sweep[part] is not None:
                mean, low, high = (np.array([reduce(runs) for runs in sweep[part]])
                                   for reduce in (np.mean, np.min, np.max))
                # beside one another, where two sweeps have the same rate
                at = np.array(sweep["rates"]) * 1.03 ** (i - (len(sweeps) - 1) / 2)
                axes.errorbar(at, mean, [mean - low, high - mean], label=sweep["name"], capsize=3,
                              **line_style(i))
        axes.set_xscale("log")
        axes.set_xticks(rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates],
                        rotation=90 if len(rates) > 4 else 0)  # they may stand close to one another
        axes.minorticks_off()
        axes.set_title(PANELS[part], fontsize=11)
        axes.set_xlabel("learning rate")
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy")
    add_legend_below(figure, all_axes[0])
    return figure
