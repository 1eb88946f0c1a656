"""The grid of position-embedding similarities."""

import numpy as np
from matplotlib.figure import Figure

GAP = 1  # cells between neighbouring maps


def mosaic(similarity):
    """All maps of a similarity (H, W, H, W) as one image, NaN between them: map (i, j) in row i, column j."""
    height, width = similarity.shape[:2]
    image = np.full((height, height + GAP, width, width + GAP), np.nan, dtype=np.float32)
    image[:, :height, :, :width] = similarity.transpose(0, 2, 1, 3)
    return image.reshape(height * (height + GAP), width * (width + GAP))[:-GAP, :-GAP]


def draw_similarities(similarities, titles, path):
    """Draw one mosaic a model, side by side, on one colour scale from -1 to 1, to a png, pdf or svg file.

    `similarities` are arrays (H, W, H, W), `titles` stand above them.
    """
    figure = Figure(figsize=(5.2 * len(similarities) + 1, 5.8), layout="constrained")
    panels = figure.subplots(1, len(similarities), squeeze=False)[0]
    for axes, similarity, title in zip(panels, similarities, titles):
        height, width = similarity.shape[:2]
        drawn = axes.imshow(mosaic(similarity), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        for axis, count, label in ((axes.xaxis, width, "column of the patch"), (axes.yaxis, height, "row of the patch")):
            shown = range(0, count, 1 if count <= 16 else 2 if count <= 32 else 4)
            axis.set_ticks([i * (count + GAP) + (count - 1) / 2 for i in shown], [str(i) for i in shown])
            axis.set_label_text(label)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10, parse_math=False)  # a name may hold $
    figure.colorbar(drawn, ax=panels, aspect=30, pad=0.02, label="cosine similarity of the position embeddings")
    figure.savefig(path, dpi=250)
