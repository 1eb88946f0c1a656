"""What position embeddings have learned: their cosine similarities, and what those say as numbers."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from common.errors import BadInput


def position_similarity(model):
    """Cosine similarity of every patch's position embedding with all others, float32 (H, W, H, W).

    `[i, j]` is the map of the patch in row i, column j. Raises BadInput for a model without such embeddings.
    """
    if getattr(model, "pos_embed", None) is None:
        rotary = getattr(model, "rope", None) is not None
        biases = [getattr(module, "relative_position_bias_table", None) for module in model.modules()]
        kind = "rotary" if rotary else "relative" if any(bias is not None for bias in biases) else "no"
        raise BadInput(f"this model has {kind} positions, and no learned embedding of positions to compare: "
                       "choose one that has, such as vit_base_patch16_224")
    embedding = model.pos_embed.detach().float()[0]
    height, width = model.patch_embed.grid_size
    return _cosines(embedding[len(embedding) - height * width:], height, width)


def _cosines(embedding, height, width):
    patches = F.normalize(embedding, dim=-1)
    return (patches @ patches.T).reshape(height, width, height, width)


def position_statistics(similarity):
    """What a picture of the similarities (H, W, H, W) would only suggest, as a dict.

    same_row, same_column   mean similarity of two patches within a row, within a column
    elsewhere               the mean of all other pairs
    by_distance             array (D,): the mean of pairs 1, 2, ... D apart, in rounded Euclidean distance
    nearest_adjacent        share of patches whose most similar other patch is one of their 8 neighbours
    """
    height, width = similarity.shape[:2]
    apart, counts = _displacements(height, width)
    flat = similarity.reshape(height * width, -1).cpu()
    sums = apart.flatten().bincount(flat.flatten().double(), height * width).reshape(height, width)
    sums[0, 0] = 0  # a patch and itself

    def mean(*part):
        return (sums[part].sum() / counts[part].sum()).item()

    y, x = torch.arange(height)[:, None], torch.arange(width)
    distance = (y**2 + x**2).sqrt().round().long().flatten()
    nearest = apart.gather(1, flat.clone().fill_diagonal_(-torch.inf).argmax(1, keepdim=True))
    adjacent = (nearest // width <= 1) & (nearest % width <= 1)
    return {
        "same_row": mean(0), "same_column": mean(slice(None), 0),
        "elsewhere": mean(slice(1, None), slice(1, None)),
        "by_distance": (distance.bincount(sums.flatten()) / distance.bincount(counts.flatten()))[1:].numpy(),
        "nearest_adjacent": adjacent.double().mean().item(),
    }


@functools.lru_cache(maxsize=4)
def _displacements(height, width):
    """rows * width + columns between all patches (H * W, H * W); how many pairs lie so far apart (H, W)."""
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    apart = (row[:, None] - row).abs() * width + (column[:, None] - column).abs()
    counts = apart.flatten().bincount(minlength=height * width).reshape(height, width)
    counts[0, 0] = 0
    return apart, counts


def random_statistics(grid, channels, resampled_to=None, draws=100, seed=0):
    """`position_statistics` of `draws` embeddings from a normal distribution, as arrays (draws, ...).

    They have a model's `grid` (H, W), and are resampled as its own are: that alone makes neighbours alike.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(draws):
        embedding = torch.randn(1, grid[0] * grid[1], channels, generator=generator)
        if resampled_to and resampled_to != grid:
            embedding = resample_abs_pos_embed(embedding, resampled_to, grid, num_prefix_tokens=0)
        samples.append(position_statistics(_cosines(embedding[0], *(resampled_to or grid))))
    return {name: np.stack([values[name] for values in samples]) for name in samples[0]}
