"""Attention sinks: patches that [CLS] attends to whatever the image shows, plain grey for instance.

Darcet et al. 2024 (arXiv:2309.16588) describe such tokens, of large norm, in large models.
"""

import numpy as np
from PIL import Image

GREYS = 0, 127, 255
TIMES = 5  # a sink has more than so many times an even share of the attention


def plain_images(size):
    """Images of `size` (width, height) without content."""
    return [Image.new("RGB", size, (grey,) * 3) for grey in GREYS]


def find_sinks(maps):
    """The sinks, bool (H, W), by the maps (B, H, W) of plain images; and how many times an even share the
    attention on them is, on average (0 without any)."""
    times = (maps / maps.sum((1, 2), keepdims=True)).mean(0) * maps[0].size
    sinks = times > TIMES
    return sinks, float(times[sinks].mean()) if sinks.any() else 0.0


def sinks_in_words(sinks, times):
    """A line that names the sinks, at most eight of them, by row and column from 0."""
    if not sinks.any():
        return "no patch draws attention whatever the photo: there are no sinks"
    places = [f"row {row} column {column}" for row, column in np.argwhere(sinks)]
    more = f" and {len(places) - 8} more" if len(places) > 8 else ""
    return (f"{len(places)} of {sinks.size} patches draw attention whatever the photo, each about "
            f"{times:.0f} times an even share where all is grey, and are framed (--without-sinks leaves them "
            f"out): {', '.join(places[:8])}{more}")
