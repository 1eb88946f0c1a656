"""Loss and accuracy over epochs, forward-backward passes and learning rates."""

import contextlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import written_whole
from plots.style import DPI, legend_below, line_style

CAPTION = ("Dashes, hollow: training, with augmentation. Solid: held out. Star: val, at the epoch of "
           "best.pt. Line: mean over seeds. Band: range over seeds. Where settings differ in the passes of "
           "an epoch, above over epochs, below over forward-backward passes.")
LEARNING_RATES_CAPTION = "Line: mean over seeds. Bar: range over seeds."
WIDTH = 9  # inches: on A4, 6.3 inches wide, letters of 9 points have 6.3
STAR = {"marker": "*", "markersize": 11, "markeredgecolor": "black", "markeredgewidth": 0.5, "zorder": 3}


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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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


def draw_settings_curves(curves):
    """Training loss, and accuracy in training, held out and on val, of several settings. Returns the Figure.

    `curves` has a dict a setting: `name`, `epochs`, `passes` (epochs,), `loss`, `training` (runs, epochs),
    `held_out`, the same or None, and `val`: its accuracy and the epoch of its weights. Passes have a row
    where settings differ in those of an epoch.
    """
    labels = {"epochs": "epoch", "passes": "forward-backward passes over a batch"}
    rows = 1 + (len({curve["passes"][0] for curve in curves}) > 1)
    figure = Figure(figsize=(WIDTH, 0.2 + 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, sharey="col", squeeze=False)
    for row, (unit, label) in zip(panels, labels.items()):
        for i, curve in enumerate(curves):
            style = {**line_style(i), "linestyle": "-"}
            dashed = {**style, "linestyle": "--", "markerfacecolor": "white"}
            _draw_band(row[0], curve[unit], curve["loss"], {**dashed, "label": curve["name"]})
            _draw_band(row[1], curve[unit], curve["training"], dashed)
            if curve["held_out"] is not None:
                _draw_band(row[1], curve[unit], curve["held_out"], style)
            accuracy, epoch = curve["val"]
            at = np.interp(epoch, curve["epochs"], curve[unit])
            row[1].plot(at, accuracy, color=style["color"], **STAR)
        for axes, quantity in zip(row, ("training loss", "accuracy")):
            axes.set(xlabel=label, ylabel=quantity)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)
    for name, look in (("training", {"ls": "--", "marker": "o", "mfc": "white"}),
                       ("held out", {"ls": "-", "marker": "o"}), ("val", {"ls": "", **STAR})):
        panels[0, 1].plot([], [], color="0.4", label=name, **look)
    panels[0, 1].legend(fontsize=9)
    add_legend_below(figure, panels[0, 0])
    return figure


def _draw_band(axes, x, values, style):
    """The mean over runs of values (runs, epochs), in a band of their range."""
    axes.plot(x, values.mean(0), markevery=max(1, len(x) // 8), **style)
    axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


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
                bars = np.maximum([mean - low, high - mean], 0)  # of equal numbers the mean may be rounded
                axes.errorbar(at, mean, bars, label=sweep["name"], capsize=3, **line_style(i))
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
