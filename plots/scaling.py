"""How speed and memory change with sizes and processes, and what many GPUs would make of it."""

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from plots.style import COLOURS, line_style

NAMES = {"adam": "Adam", "sam": "SAM around Adam"}
SHORT = {"adam": "Adam", "sam": "SAM", "joint": "SAM,\njoint climb"}
WAYS = list(SHORT)


def draw_scaling(found, seconds, curves):
    """The figure of `benchmarks.scaling`.

    Args:
        found: `batch size`, `image size`, `model` and perhaps `processes` are lists of points, dicts with `value`,
            `optimizer`, `images_per_second`, `memory` in bytes and `parameters`; `paper` has `steps`; and what was measured.
        seconds: (steps,), of a step on one GPU.
        curves: {(number of GPUs, climb): efficiency (steps,)}.

    Returns the Figure.
    """
    figure = Figure(figsize=(11.5, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    size = f"{found['batch_size']} images a step"
    _draw_pace(panels[0, 0], found["batch size"], "images a step", found["arch"])
    _draw_pace(panels[0, 1], found["image size"], "image size, pixels", f"{found['arch']}, {size}")
    models = [{**point, "value": point["parameters"] / 1e6, "gib": point["memory"] / 2**30} for point in found["model"]]
    _draw_pace(panels[0, 2], models, "parameters, millions", size)
    _draw_pace(panels[1, 0], models, "parameters, millions", f"memory, {size}", quantity="gib")
    if "processes" in found:
        _draw_processes(panels[1, 1], found["processes"], f"{found['arch']}, {2 * found['batch_size']} images a step")
    else:
        panels[1, 1].set_axis_off()
    _draw_paper(panels[1, 2], found["paper"], seconds, curves)
    figure.suptitle(f"Training steps on random images, {found['precision']}, {found['device']}", fontsize=12)
    return figure


def _draw_pace(axes, points, label, title, quantity="images_per_second"):
    for way in NAMES:
        own = [point for point in points if point["optimizer"] == way]
        values = [point["value"] for point in own]
        axes.plot(values, [point[quantity] for point in own], label=NAMES[way], **line_style(WAYS.index(way)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:.3g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.08 * max(point[quantity] for point in points))
    axes.set(xlabel=label, ylabel="GiB" if quantity == "gib" else "images/s")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_processes(axes, points, title):
    colours = [COLOURS[WAYS.index(point["optimizer"])] for point in points]
    bars = axes.bar(range(len(points)), [point["images_per_second"] for point in points], color=colours)
    axes.bar_label(bars, [f"{point['images_per_second']:.1f}" for point in points], fontsize=9)
    axes.set_xticks(range(len(points)), [f"{SHORT[point['optimizer']]}\n{point['value']}" for point in points], fontsize=8)
    axes.margins(y=0.12)
    axes.set(xlabel="number of processes", ylabel="images/s")
    axes.set_title(title, fontsize=10)


def _draw_paper(axes, paper, seconds, curves):
    for i, ((gpus, climb), shares) in enumerate(curves.items()):
        axes.plot(seconds, shares, label=f"{gpus} GPUs, {climb}", color=COLOURS[i // 2], linestyle="-:"[i % 2])
    for i, (name, at) in enumerate({row["step"]: row["seconds"] for row in paper["steps"]}.items()):
        axes.axvline(at, color="0.5", linewidth=1)
        axes.text(at, 0.42, f" {name}", rotation=90, fontsize=8, color="0.3", ha="left", va="bottom")
    axes.set_xscale("log")
    axes.set_xticks(ticks := [0.001, 0.01, 0.1, 1, 10], [f"{tick:g}" for tick in ticks])
    axes.set_xlim(right=3 * max(10, *(row["seconds"] for row in paper["steps"])))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="a step of SAM on one GPU, seconds", ylabel="efficiency, at least")
    axes.set_title(f"on paper: {paper['arch']},\ngradient of {paper['gradient_bytes'] / 1e6:.0f} MB", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(title="SAM's climb", fontsize=8, title_fontsize=8, loc="lower left", bbox_to_anchor=(0.41, 0))
