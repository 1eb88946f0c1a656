"""Loss and accuracy over the epochs of a run."""

import contextlib

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.files import written_whole
from plots.style import DPI


def draw_curves(history, path):
    """Draw `history` (one dict an epoch, as in metrics.csv) to a picture file, written whole or not at all; none for no epoch."""
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
    """Draw what `history` holds when the block ends, however it ends. An error of the block comes before one of these."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            draw_curves(history, path)
        raise
    draw_curves(history, path)
