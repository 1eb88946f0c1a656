"""How much of the attention lies on the object, block by block."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from plots.style import legend_below, line_style, save


def draw_shares(groups, path):
    """Draw two panels, of all patches and without sinks, to a picture file.

    `groups` are those of `interpret.findings.Findings.block_means`: of each the share of the attention is a
    line, that of the area dotted in its colour.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for i, (name, means) in enumerate(groups.items()):
        look = line_style(i)
        for axes, of_patches in zip(panels, means.swapaxes(0, 1)):
            axes.plot(of_patches[:, 0], **look, label=name if axes is panels[0] else None)
            axes.plot(of_patches[:, 1], color=look["color"], linestyle=":",
                      label=f"{name}: share of the area" if axes is panels[0] else None)
    for axes, title in zip(panels, ("all patches", "without sinks")):
        axes.set(title=title, xlabel="block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the attention of [CLS] on the object")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(figure, ncols=len(groups))
    save(figure, path)
