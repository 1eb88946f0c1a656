"""Where a Vision Transformer attends: the softmax of its blocks, the [CLS] row, and attention rollout.

For timm's VisionTransformer, Beit and Eva (DeiT, DINOv2 and DINOv3 are among them). They have tokens in this
order: first the prefix ([CLS], then distillation or register tokens), then the H x W patches, row by row.
"""

import contextlib

import timm
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from common.errors import BadInput

TAKES_HEADS = F.linear, F.layer_norm, F.rms_norm  # a projection, or the norm before it


class _ExplicitAttention(TorchFunctionMode):
    """Inside, torch's fused attention is computed step by step, in fp32; `maps` receives each softmax.

    `plain` is false where what a softmax makes of the values is not what the next layer takes.
    """

    def __init__(self):
        super().__init__()
        self.maps, self.mixed, self.plain = [], None, True

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.plain &= self.mixed is None
            function = self.attend
        elif self.mixed is not None and function in TAKES_HEADS:
            self.plain &= _same(args[0], self.mixed[:1].transpose(1, 2).flatten(2))
            self.mixed = None
        return function(*args, **(kwargs or {}))

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
               enable_gqa=False):
        """softmax(scale * q k^T + mask) v, with what torch documents for its arguments; no dropout."""
        if is_causal or enable_gqa:
            raise BadInput("this model's attention is causal or grouped: choose a timm VisionTransformer")
        scale = query.shape[-1]**-0.5 if scale is None else scale
        with torch.autocast(query.device.type, enabled=False):
            scores = query.float() @ key.float().transpose(-2, -1) * scale
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            elif attn_mask is not None:
                scores = scores + attn_mask
            self.maps.append(scores.softmax(-1))
            self.mixed = (self.maps[-1] @ value.float()).to(value.dtype)
        return self.mixed


@torch.no_grad()
def attention_maps(model, images, blocks=(-1,)):
    """The model's output (B, classes) for `images` (B, 3, H, W), preprocessed, and attention of some blocks.

    The latter is a tensor (B, heads, N, N), float32, for each block, whose rows, softmax(q k^T / sqrt(d) +
    bias), sum to 1. A block with parallel attention branches has the heads of all of them. The model runs
    once as it is, fused attention and autocast included; then only the blocks asked for run again, from their
    own input, with their attention computed in steps. A compiled model runs uncompiled: it would not call the
    hooks that catch those inputs. Raises BadInput for a missing block, and for one whose maps would not be
    the whole of its attention, as with differential or gated attention, or a timm that computes it otherwise.
    """
    modules = [_block(model, index) for index in blocks]
    calls = {}

    def catch(module, args, kwargs, output):
        calls[module] = args, kwargs, output

    with contextlib.ExitStack() as stack:
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in {part for block in modules for part in (block, *_attending(block))}:
            stack.enter_context(module.register_forward_hook(catch, with_kwargs=True))
        logits = model(images)
        return logits, [_attention(index % len(model.blocks), block, calls)
                        for index, block in zip(blocks, modules)]


def _attending(block):
    """timm's modules in a block, or itself, that compute attention."""
    return [module for module in block.modules() if hasattr(module, "fused_attn")]


def _block(model, index):
    if not -len(model.blocks) <= index < len(model.blocks):
        raise BadInput(f"there is no block {index}: the model has {len(model.blocks)}, counted from 0")
    return model.blocks[index]


def _attention(index, block, calls):
    """The maps of a block, which runs again as it was called: `calls` has (args, kwargs, output) of each."""
    own, exact = dict(calls), not torch.is_autocast_enabled(calls[block][2].device.type)
    with contextlib.ExitStack() as stack:
        for module in _attending(block):
            stack.callback(setattr, module, "fused_attn", module.fused_attn)
            module.fused_attn = True
        explicit = stack.enter_context(_ExplicitAttention())
        block(*own[block][0], **own[block][1])
    again = [(calls[part][2], own[part][2]) for part in block.modules() if part in own]
    if not (explicit.maps and explicit.plain and explicit.mixed is None
            and all(_same(*outputs) for outputs in again if exact and outputs[1].dtype == torch.float32)):
        kinds = {type(module).__name__ for module in _attending(block) or [block]}
        raise BadInput(f"block {index}: {' and '.join(sorted(kinds))} of timm {timm.__version__} does not "
                       "just weigh values by a softmax, which a map could show: choose a model with plain "
                       "attention, such as vit_base_patch16_224, or the timm of requirements.txt")
    return torch.cat(explicit.maps, 1)


def _same(values, expected):
    """Whether two batches agree in their first image, which tells, to 1e-4 of its largest value."""
    values, expected = values[:1], expected[:1]
    return values.shape == expected.shape and bool(
        (values - expected).abs().max() <= 1e-4 * expected.abs().max())


def patch_grid(model, size):
    """The rows and columns of patches that the model cuts images of `size` (height, width) into."""
    embed, dynamic = model.patch_embed, getattr(model, "dynamic_img_size", False)
    return tuple(embed.dynamic_feat_size(tuple(size)) if dynamic else embed.grid_size)


def cls_to_patch(maps, model, grid):
    """The [CLS] row of attention maps (..., N, N), patches only, not renormalised: (..., H, W) of the `grid`.

    Raises BadInput for a model without a [CLS] token.
    """
    if getattr(model, "cls_token", None) is None:
        raise BadInput("this model has no [CLS] token, it pools its patches: choose one that has, such as "
                       "vit_base_patch16_224")
    return maps[..., 0, model.num_prefix_tokens:].unflatten(-1, grid)


def rollout(maps):
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, section 3) of all blocks, in their order.

    Each map is (B, heads, N, N); with A the mean over heads, the result is the product of (A + 1) / 2 over
    all blocks, the last one leftmost: (B, N, N), whose rows sum to 1.
    """
    product = identity = torch.eye(maps[0].shape[-1], device=maps[0].device)
    for block in maps:
        product = (block.mean(1) + identity) / 2 @ product
    return product
