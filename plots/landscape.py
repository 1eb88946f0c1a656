"""How flat minima are: loss curves, the rise of the loss, eigenvalues and contours."""

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from plots.style import COLOURS, DASHES, DPI, MARKERS, legend_below

LEVELS = 16  # of the contours
COLUMNS = 3
WIDTH, FONT = 9, 9  # inches and points: on A4, 6.3 inches wide, letters have 6.3 points
NOTE = ("+ marks the weights. The loss may be lowest beside it: training minimised the loss of all photos, "
        "augmented, and may have\nended before its minimum; drawn is the loss of these photos as they are.")


def styles(kinds):
    """A colour, line and marker for each checkpoint: a colour a kind, or a checkpoint of a single kind."""
    order, looks = list(dict.fromkeys(kinds)), []
    for i, kind in enumerate(kinds):
        group = order.index(kind) if len(order) > 1 else i
        looks.append({"color": COLOURS[group % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                      "linestyle": DASHES[kinds[:i].count(kind) % len(DASHES)]})
    return looks


def contour_levels(rises):
    """Levels from the least to the most of several arrays: a quadratic bowl shows rings of equal distance."""
    low, high = np.min(rises), np.max(rises)
    return low + max(high - low, 1e-6) * np.linspace(0, 1, LEVELS) ** 2


def draw_landscapes(arrays, title, path):
    """Draw the arrays of p1_viz_landscape.py to a picture file.

    Above the loss along one direction, its rise and the largest eigenvalues (where there are any), with bars
    from the least to the most of the batches; below the contours over two directions, on one scale.
    """
    names = [f"{name}: {kind}" for name, kind in zip(arrays["names"], arrays["kinds"])]
    columns = 2 if len(names) == 4 else min(COLUMNS, len(names))
    heights = 3.2, 0.7 + (WIDTH - 1.5) / max(2, columns) * -(-len(names) // columns)
    with rc_context({"font.size": FONT, "axes.titlesize": FONT}):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=heights)
        figure.suptitle(title, fontsize=FONT + 1, parse_math=False)  # a name may hold $
        _draw_measures(upper, names, arrays)
        _draw_contours(lower, columns, names, arrays)
        figure.savefig(path, dpi=DPI)


def _draw_measures(figure, names, arrays):
    ranks = np.arange(1, arrays["eigenvalues"].shape[2] + 1)
    curve, rise, *eigen = panels = figure.subplots(1, 3 if len(ranks) else 2)
    for i, (name, look) in enumerate(zip(names, styles(arrays["kinds"]))):
        shift = i - (len(names) - 1) / 2
        curve.plot(arrays["alphas"], arrays["loss_1d"][i], **look, markersize=3.5)
        _draw_spread(rise, arrays["rhos"] * 1.03**shift, arrays["rise"][i], look, label=name)
        look["linestyle"] = ""
        for axes in eigen:
            _draw_spread(axes, ranks + 0.6 * shift / len(names), arrays["eigenvalues"][i], look)
    curve.set(xlabel="along a random direction, in filter norms", ylabel="loss",
              title="loss along one direction")
    rise.set(xscale="log", xlabel="rho, the step along the gradient", ylabel="rise of the loss",
             title="rise at SAM's perturbation")
    rise.set_xticks(arrays["rhos"], [f"{rho:g}" for rho in arrays["rhos"]])
    rise.set_xticks([], minor=True)
    for axes in eigen:
        axes.set(xticks=ranks, xlabel="rank", ylabel="eigenvalue", xlim=(0.4, len(ranks) + 0.6),
                 title="largest eigenvalues of the Hessian")
    for axes, name in zip(panels, ("loss_1d", "rise", "eigenvalues")):
        if arrays[name].min() > 0:  # 1, 2, 5, 10 instead of powers
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(alpha=0.3)
    legend_below(figure, ncols=COLUMNS, frameon=False)


def _draw_contours(figure, columns, names, arrays):
    rises = arrays["loss_2d"] - arrays["loss"][:, None, None]
    levels = contour_levels(rises)
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(names):]:
        axes.set_axis_off()
    figure.supxlabel(NOTE, fontsize=FONT)
    for i, (axes, name) in enumerate(zip(panels.flat, names)):
        filled = axes.contourf(arrays["grid_alphas"], arrays["grid_alphas"], rises[i], levels, cmap="viridis",
                               norm=BoundaryNorm(levels, 256))
        axes.contour(filled, colors="white", linewidths=0.5, linestyles="-")
        axes.plot(0, 0, "+", color="white", markersize=9)
        axes.set_aspect("equal")
        axes.set_title(f"{name}\nloss {arrays['loss'][i]:.3g} at +", parse_math=False)
        axes.set(xlabel="along the first direction", ylabel="along the second direction")
        axes.label_outer()
    bar = figure.colorbar(filled, ax=panels, aspect=30, spacing="proportional", panchor=False,
                          label="loss above that at +", ticks=MaxNLocator(8),
                          format=FuncFormatter(lambda value, _: f"{value:g}"))
    bar.minorticks_off()


def _draw_spread(axes, x, values, look, label=None):
    """Means over the batches (rows of `values`), with bars from the least to the most."""
    mean = values.mean(0)
    # of one batch, rounding may put the mean outside
    around = np.maximum(0, [mean - values.min(0), values.max(0) - mean])
    axes.errorbar(x, mean, around, **look, markersize=4.5, capsize=2, elinewidth=0.9, label=label)
