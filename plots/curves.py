"""Loss and accuracy over epochs, forward-backward passes and learning rates."""

import contextlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import written_whole
from plots.style import DPI, legend_below, line_style

CAPTION = ("Line: mean over seeds. Band: range over seeds. "
           "Above over epochs, below over forward-backward passes.")
LEARNING_RATES_CAPTION = "Line: mean over seeds. Bar: range over seeds."


def draw_curves(history, path):
    """Draw `history` (one dict an epoch, as in metrics.csv) to a picture file, unless it is empty."""
    if not history:
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for part, label, style in (("train", "training", "o-"), ("holdout", "held out", "s--")):
            values = [row[f"{part}_{quantity}"] for row in history]
            if None not in values:
                axes.plot(epochs, values, style, label=label, markersize=3)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        axes.set_ylim(bottom=0, top=1.02 if quantity == "accuracy" else None)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


@contextlib.contextmanager
def drawing_curves(history, path):
    """Draw what `history` holds when the block ends, however it ends; an error of the block comes first."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            draw_curves(history, path)
        raise
    draw_curves(history, path)


def draw_settings_curves(curves, accuracy_label):
    """Training loss and accuracy of several settings. Returns the Figure.

    `curves` has a dict a setting: `name`, `epochs`, `passes` (epochs,), `loss`, `accuracy` (runs, epochs).
    """
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="col")
    labels = {"epochs": "epoch", "passes": "forward-backward passes over a batch"}
    for row, (unit, label) in zip(panels, labels.items()):
        for axes, quantity in zip(row, ("loss", "accuracy")):
            for i, curve in enumerate(curves):
                x, values, style = curve[unit], curve[quantity], line_style(i)
                axes.plot(x, values.mean(0), label=curve["name"], markevery=max(1, len(x) // 8), **style)
                axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(alpha=0.3)
        row[0].set(ylabel="training loss", ylim=(0, None))
        row[1].set(ylabel=accuracy_label, ylim=(0, 1.02))
    add_legend_below(figure, panels[0, 0])
    return figure


def draw_learning_rates(sweeps):
    """A panel for the accuracy on val and, where there is one, for the held-out accuracy. Returns the Figure.

    `sweeps` has a dict a line: `name`, `rates`, and as `val` and `held_out` (or None) the runs of each rate.
    """
    titles = {"val": "accuracy on val", "held_out": "accuracy on the held-out part"}
    panels = [part for part in titles if any(sweep[part] is not None for sweep in sweeps)]
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
        axes.set_title(titles[part], fontsize=11)
        axes.set_xlabel("learning rate")
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy")
    add_legend_below(figure, all_axes[0])
    return figure


def add_legend_below(figure, axes):
    """Put the legend of some axes below a figure, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = max(1, min(4, len(names), int(12 * width / (max(map(len, names)) + 8))))
    figure.set_size_inches(width, height + 0.22 * -(-len(names) // columns))
    legend_below(figure, handles=handles, labels=names, ncols=columns, fontsize=9)
