"""What a Vision Transformer has learned to compare: position embeddings and attention, as tensors.

For the VisionTransformer, Beit and Eva classes of timm (DeiT, DINOv2 and DINOv3 are among them). Tokens stand in the
order of timm: first the prefix ([CLS], then distillation or register tokens), then the H x W patches in row-major order.
"""

import contextlib
import functools

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DiffAttention, resample_abs_pos_embed
from timm.models.vision_transformer import DiffParallelScalingBlock
from torch.overrides import TorchFunctionMode

from common.errors import BadInput

# Position embeddings -----------------------------------------------------------------------------------------------


def position_similarity(model):
    """Cosine similarity of every patch's position embedding with all others, float32 (H, W, H, W).

    `[i, j]` is the map of the patch in row i, column j. The embeddings of prefix tokens are left out. Raises BadInput
    for a model without learned position embeddings.
    """
    if getattr(model, "pos_embed", None) is None:
        raise BadInput(f"this model has {_other_positions(model)}, and no learned embedding of positions to compare: "
                       "choose one that has, such as vit_base_patch16_224")
    embedding = model.pos_embed.detach().float()[0]
    height, width = model.patch_embed.grid_size
    return _cosines(embedding[len(embedding) - height * width:], height, width)


def _other_positions(model):
    if getattr(model, "rope", None) is not None:
        return "rotary positions"
    relative = any(getattr(module, "relative_position_bias_table", None) is not None for module in model.modules())
    return "relative positions" if relative else "no positions"


def _cosines(embedding, height, width):
    patches = F.normalize(embedding, dim=-1)
    return (patches @ patches.T).reshape(height, width, height, width)


def position_statistics(similarity):
    """What a picture of the similarities (H, W, H, W) would only suggest, as a dict.

    same_row, same_column, elsewhere   mean similarity of two different patches in one row, in one column, in neither
    by_distance                        array (D,): mean similarity of patches 1, 2, ... D apart, in rounded Euclidean
                                       distance
    nearest_adjacent                   share of patches whose most similar other patch is one of their 8 neighbours
    """
    height, width = similarity.shape[:2]
    apart, counts = _displacements(height, width)
    flat = similarity.reshape(height * width, -1).cpu()
    sums = apart.flatten().bincount(flat.flatten().double(), height * width).reshape(height, width)
    sums[0, 0] = 0  # a patch and itself

    def mean(*part):
        return (sums[part].sum() / counts[part].sum()).item()

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = (y**2 + x**2).sqrt().round().long().flatten()
    nearest = apart.gather(1, flat.clone().fill_diagonal_(-torch.inf).argmax(1, keepdim=True))
    adjacent = (nearest // width <= 1) & (nearest % width <= 1)
    return {
        "same_row": mean(0), "same_column": mean(slice(None), 0), "elsewhere": mean(slice(1, None), slice(1, None)),
        "by_distance": (distance.bincount(sums.flatten()) / distance.bincount(counts.flatten()))[1:].numpy(),
        "nearest_adjacent": adjacent.double().mean().item(),
    }


@functools.lru_cache(maxsize=4)
def _displacements(height, width):
    """How far patches lie apart: rows * width + columns for all pairs (H * W, H * W), and the number of pairs for each
    number of rows and columns (H, W), without a patch and itself."""
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    apart = (row[:, None] - row).abs() * width + (column[:, None] - column).abs()
    counts = apart.flatten().bincount(minlength=height * width).reshape(height, width)
    counts[0, 0] = 0
    return apart, counts


def random_statistics(grid, channels, shown=None, draws=100, seed=0):
    """`position_statistics` of `draws` embeddings from a normal distribution, each value as an array (draws, ...).

    They are drawn for the `grid` (H, W) that a model has, and resampled to the grid `shown` as the model's own are:
    that alone makes neighbours alike.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        embedding = torch.randn(1, grid[0] * grid[1], channels, generator=generator)
        if shown and shown != grid:
            embedding = resample_abs_pos_embed(embedding, shown, grid, num_prefix_tokens=0)
        found.append(position_statistics(_cosines(embedding[0], *(shown or grid))))
    return {name: np.stack([values[name] for values in found]) for name in found[0]}


# Attention ---------------------------------------------------------------------------------------------------------


class _Explicit(TorchFunctionMode):
    """Inside, torch's fused attention is computed step by step, in fp32; `maps` receives each softmax."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return self.attend(*args, **kwargs)

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        """softmax(scale * q k^T + mask) v, with what torch documents for its arguments; no dropout."""
        if is_causal:
            raise BadInput("this model's attention is causal: choose a timm VisionTransformer")
        with torch.autocast(query.device.type, enabled=False):
            scores = query.float() @ key.float().transpose(-2, -1) * (query.shape[-1]**-0.5 if scale is None else scale)
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            self.maps.append(scores.softmax(-1))
            return (self.maps[-1] @ value.float()).to(value.dtype)


@torch.no_grad()
def attention_maps(model, images, blocks=(-1,)):
    """The model's output, and the attention of some of its blocks.

    `images` is (B, 3, H, W), preprocessed. Returns (logits (B, classes), maps): one tensor (B, heads, N, N), float32, a
    block, whose rows, softmax(q k^T / sqrt(d) + bias), sum to 1. A block with parallel attention branches has the heads
    of all of them. The model runs once as it is, fused attention and autocast included; then only the blocks asked for
    run again, from their own input, with their attention computed in steps. A compiled model runs uncompiled, since it
    would not call the hooks that catch those inputs.
    Raises BadInput for a block that the model does not have, and for differential attention.
    """
    chosen = [_block(model, index) for index in blocks]
    inputs = {}
    hooks = [block.register_forward_pre_hook(lambda block, args, kwargs: inputs.__setitem__(block, (args, kwargs)),
                                             with_kwargs=True) for block in chosen]
    with _uncompiled(model):
        try:
            logits = model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, [_attention(block, *inputs[block]) for block in chosen]


def _uncompiled(model):
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def _block(model, index):
    if not -len(model.blocks) <= index < len(model.blocks):
        raise BadInput(f"there is no block {index}: the model has {len(model.blocks)}, counted from 0")
    block = model.blocks[index]
    if any(isinstance(module, (DiffAttention, DiffParallelScalingBlock)) for module in block.modules()):
        raise BadInput(f"block {index} subtracts one attention from another, which is no map of shares: choose a model "
                       "with plain attention, such as vit_base_patch16_224")
    return block


def _attention(block, args, kwargs):
    """The attention of a block for its input: (B, heads, N, N), float32."""
    with contextlib.ExitStack() as stack:
        for module in block.modules():
            if getattr(module, "fused_attn", True) is False:
                module.fused_attn = True
                stack.callback(setattr, module, "fused_attn", False)
        explicit = stack.enter_context(_Explicit())
        block(*args, **kwargs)
    return torch.cat(explicit.maps, 1)


def patch_grid(model, size):
    """The rows and columns of patches that the model cuts images of `size` (height, width) into."""
    embed = model.patch_embed
    if getattr(model, "dynamic_img_size", False):
        return tuple(embed.dynamic_feat_size(tuple(size)))
    return tuple(embed.grid_size)


def cls_to_patch(maps, model, grid):
    """The [CLS] row of attention maps (..., N, N), patches only, not renormalised: (..., H, W) for the `grid` (H, W).

    Raises BadInput for a model without a [CLS] token.
    """
    if getattr(model, "cls_token", None) is None:
        raise BadInput("this model has no [CLS] token, it pools its patches: choose one that has, such as "
                       "vit_base_patch16_224")
    return maps[..., 0, model.num_prefix_tokens:].unflatten(-1, grid)


def rollout(maps):
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, section 3) of the maps of all blocks, in their order.

    Each is (B, heads, N, N); with A the mean over heads, the result is the product of (A + 1) / 2 over all blocks, the
    last one leftmost: (B, N, N), whose rows sum to 1.
    """
    result = None
    for block in maps:
        mean = block.mean(1)
        step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        result = step if result is None else step @ result
    return result


def share_on(attention, inside, outside):
    """The share of attention (..., H, W) on an object and the share of the area that it covers.

    `inside` and `outside` (H, W) are the parts of each patch that the object and the background cover; what is in
    neither, a border of unsure pixels, counts for neither. Returns (share of attention (...), share of area).
    """
    on, off = (attention * inside).sum((-2, -1)), (attention * outside).sum((-2, -1))
    return on / (on + off), inside.sum() / (inside.sum() + outside.sum())


def peaks_on(attention, inside):
    """Whether the most attended patch of a map (H, W) lies on the object, or next to a patch that it touches.

    `inside` (H, W) is the part of each patch that the object covers. Returns (bool, the share of patches for which it
    would be true: what chance gives).
    """
    near = F.max_pool2d((inside > 0).float()[None, None], 3, stride=1, padding=1)[0, 0]
    return bool(near.flatten()[attention.argmax()]), near.mean().item()
