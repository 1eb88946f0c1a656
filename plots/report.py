"""Figures over several runs: curves, learning rates, calibration, confusions, and photos with a line below each."""

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots.style import COLOURS, line_style

MOST_CLASSES = 60  # of a confusion matrix whose names can still be read


@dataclass
class Curves:
    """The curves of a setting: `loss` and `accuracy` (runs, epochs), over `epochs` and `passes`, (epochs,) each."""

    name: str
    epochs: np.ndarray
    passes: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def draw_curves(curves, accuracy_label):
    """Training loss and accuracy of several settings: mean over seeds as a line, their range as a band.

    The upper row is over epochs, the lower one over forward-backward passes. Returns the Figure.
    """
    figure, legend = _with_legend_below([one.name for one in curves], width=10, height=6.6)
    panels = figure.subplots(2, 2, sharey="col")
    for row, (x, label) in zip(panels, (("epochs", "epoch"), ("passes", "forward-backward passes over a batch"))):
        for axes, quantity in zip(row, ("loss", "accuracy")):
            for i, one in enumerate(curves):
                values, at = getattr(one, quantity), getattr(one, x)
                axes.plot(at, values.mean(0), label=one.name, markevery=max(1, len(at) // 8), **line_style(i))
                axes.fill_between(at, values.min(0), values.max(0), color=line_style(i)["color"], alpha=0.15, linewidth=0)
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("training loss")
        row[1].set_ylabel(accuracy_label)
        row[0].set_ylim(bottom=0)
        row[1].set_ylim(0, 1.02)
    legend(panels[0][0])
    return figure


@dataclass
class Sweep:
    """Accuracies (rates, runs as a list) of settings that differ in the learning rate: on val, and held out or None."""

    name: str
    rates: list
    on_val: list
    held_out: list


def draw_sweeps(sweeps):
    """Accuracy over learning rate: mean over seeds as a line, their range as a bar. Returns the Figure."""
    parts = [("on_val", "accuracy on val")]
    if any(sweep.held_out for sweep in sweeps):
        parts.append(("held_out", "accuracy on the held-out part"))
    figure, legend = _with_legend_below([sweep.name for sweep in sweeps], width=1.5 + 4.25 * len(parts), height=3.6)
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, (part, label) in zip(panels, parts):
        for i, sweep in enumerate(sweeps):
            if values := getattr(sweep, part):
                mean = np.array([np.mean(runs) for runs in values])
                below = mean - [np.min(runs) for runs in values]
                above = np.array([np.max(runs) for runs in values]) - mean
                # beside one another, where two sweeps have the same rate
                rates = np.array(sweep.rates) * 1.03 ** (i - (len(sweeps) - 1) / 2)
                axes.errorbar(rates, mean, [below, above], label=sweep.name, capsize=3, **line_style(i))
        rates = sorted({rate for sweep in sweeps for rate in sweep.rates})
        axes.set_xscale("log")
        axes.set_xticks(rates, [np.format_float_scientific(rate, trim="-", exp_digits=1) for rate in rates],
                        rotation=90 if len(rates) > 4 else 0)  # they may stand close to one another
        axes.minorticks_off()
        axes.set(xlabel="learning rate", title=label)
        axes.title.set_fontsize(11)
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    legend(panels[0])
    return figure


def draw_reliability(settings):
    """A panel a setting: accuracy over confidence, a point a bin, its area by how many answers the bin holds.

    `settings` are (title, count (bins,), mean confidence, accuracy). Returns the Figure.
    """
    columns = min(4, len(settings))
    rows = -(-len(settings) // columns)
    titles = [_lines(title, 34, 5) for title, *_ in settings]
    height = 2.75 + 0.17 * max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(max(4.5, 2.9 * columns), height * rows + 0.4), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(settings):]:
        axes.set_axis_off()
    for i, (axes, title, (_, count, confidence, accuracy)) in enumerate(zip(panels.flat, titles, settings)):
        filled = count > 0
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        axes.plot(confidence[filled], accuracy[filled], color=COLOURS[0], linewidth=1)
        axes.scatter(confidence[filled], accuracy[filled], 6 + 250 * count[filled] / count.sum(), color=COLOURS[0],
                     alpha=0.6, linewidth=0)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.grid(alpha=0.3)
        # the lowest panel of each column, which need not be in the last row
        axes.tick_params(labelbottom=i + columns >= len(settings))
    figure.supxlabel("confidence: the probability of the predicted class", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return figure


def draw_confusion(counts, names, title):
    """A confusion matrix, a row a true class: the colour is the share of its images, the number how many there are.

    `counts` (classes, classes) may be a mean over runs. Of more than `MOST_CLASSES` classes those with the most mistakes
    are drawn. Returns the Figure.
    """
    counts, names = np.asarray(counts, dtype=float), list(names)
    if len(names) > MOST_CLASSES:
        kept = most_mistaken(counts)
        title += f"; the {MOST_CLASSES} of {len(names)} classes with the most mistakes"
        totals = counts.sum(1)[kept]
        counts, names = counts[np.ix_(kept, kept)], [names[i] for i in kept]
    else:
        totals = counts.sum(1)
    with np.errstate(invalid="ignore"):
        shares = counts / totals[:, None]  # NaN for a class without images: it stays white
    side = max(4.0, 0.27 * len(names) + 2.4)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for i, j in np.argwhere(counts > 0):
        axes.text(j, i, f"{counts[i, j]:.1f}".removesuffix(".0"), ha="center", va="center",
                  fontsize=6 if len(names) > 20 else 8,
                  color="white" if shares[i, j] > 0.55 else "black")
    names = [_shortened(name, 28) for name in names]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_title(_wrapped(title, int(10 * side)), fontsize=10, parse_math=False)
    figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, label="share of the true class's images")
    return figure


def most_mistaken(counts):
    """The classes of confusion counts (classes, classes) that a matrix has room for, in order: those with the most mistakes."""
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])


def draw_photos(rows, columns, heading):
    """Rows of photos with a text below each, and a heading above each row where it is not empty.

    `rows` are (heading, [(photo uint8 (height, width, 3), text), ...]) of at most `columns` photos. Returns the Figure.
    """
    wide, high = 2.5, 2.65  # inches of a cell: 2.3 by 2.1 for the photo, the rest for the text
    above = [0.3 if row else 0 for row, _ in rows]
    total = sum(above) + high * len(rows) + 0.45
    figure = Figure(figsize=(wide * columns, total))
    figure.text(0.5, 1 - 0.13 / total, _shortened(heading, 30 * columns), fontsize=10, ha="center", va="top",
                parse_math=False)
    top = 0.45
    for (name, photos), space in zip(rows, above):
        if name:
            figure.text(0.02, 1 - (top + 0.12) / total, _shortened(name, 28 * columns), fontsize=9.5, va="top",
                        weight="bold", parse_math=False)
        top += space
        for i, (photo, text) in enumerate(photos):
            axes = figure.add_axes(((i * wide + 0.1) / (wide * columns), 1 - (top + 2.2) / total,
                                    (wide - 0.2) / (wide * columns), 2.1 / total))
            axes.imshow(photo)
            axes.set_axis_off()
            figure.text((i + 0.5) / columns, 1 - (top + 2.25) / total, _lines(text, 40, 3), fontsize=7.5, ha="center",
                        va="top", parse_math=False)
        top += high
    return figure


def _with_legend_below(names, width, height):
    """A figure, and a function that puts the legend of some axes below everything, in as many columns as names fit."""
    longest = max(map(len, names))
    columns = max(1, min(4, len(names), int(width * 12 / (longest + 8))))
    figure = Figure(figsize=(width, height + 0.22 * -(-len(names) // columns)), layout="constrained")

    def legend(axes):
        found = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=9)
        for text in found.get_texts():
            text.set_parse_math(False)  # a name may hold $

    return figure, legend


def _shortened(text, length):
    return text if len(text) <= length else text[:length - 1] + "…"


def _wrapped(text, width):
    return "\n".join(textwrap.wrap(text, width))


def _lines(text, width, most):
    """Lines of a text, wrapped to a width, at most so many."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    return "\n".join(lines[:most])
