"""An attention map over its photo."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DIMMED = 0.35  # brightness of what the model did not see


def draw_attention(photo, attention, box, heading, path):
    """Draw the photo, the attention of its patches, and the one laid over the other, to a picture file.

    `photo` is uint8 (height, width, 3), `attention` (H, W) with any scale, `box` the (left, top, right, bottom) of what
    the model saw, in photo pixels: the map covers exactly that, and what was cropped away is dimmed.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = box
    figure = Figure(figsize=(11, min(8, max(2.6, 3.3 * height / width + 0.9))), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title in zip(panels, ("photo", "attention of [CLS] to each patch", "over what the model saw")):
        axes.set_title(title, fontsize=10)

    drawn = {"cmap": "inferno", "vmin": 0, "vmax": attention.max(), "extent": (left, right, bottom, top)}
    for axes in (panels[0], panels[2]):
        axes.imshow(photo, extent=(0, width, height, 0))
    panels[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linestyle="--"))
    map_image = panels[1].imshow(attention, interpolation="nearest", **drawn)
    # where there is no attention the photo shows through
    panels[2].imshow(attention, interpolation="bilinear", alpha=0.85 * np.sqrt(attention / attention.max()), **drawn)
    for x, y, across, down in ((0, 0, width, top), (0, bottom, width, height - bottom), (0, top, left, bottom - top),
                               (right, top, width - right, bottom - top)):
        if across > 0 and down > 0:
            panels[2].add_patch(Rectangle((x, y), across, down, color="black", alpha=1 - DIMMED, linewidth=0))
    for axes in panels:  # after imshow, which sets limits of its own
        axes.set(xlim=(min(0, left), max(width, right)), ylim=(max(height, bottom), min(0, top)), xticks=[], yticks=[])
    figure.colorbar(map_image, ax=panels, shrink=0.85, aspect=25, label="attention, mean over heads")
    figure.suptitle(heading, fontsize=11, parse_math=False)  # a name may hold $
    figure.savefig(path, dpi=180)
