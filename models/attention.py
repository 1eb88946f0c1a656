"""What a Vision Transformer has learned to compare: position embeddings and attention, as tensors.

Tokens stand in the order of timm: first the prefix ([CLS], then distillation or register tokens), then the H x W
patches in row-major order.
"""

import torch
import torch.nn.functional as F
from timm.layers import Attention

from common.errors import BadInput


def position_similarity(model):
    """Cosine similarity of every patch's position embedding with all others, float32 (H, W, H, W).

    `[i, j]` is the map of the patch in row i, column j. The embeddings of prefix tokens are left out. Raises BadInput
    for a model without learned position embeddings.
    """
    if getattr(model, "pos_embed", None) is None:
        raise BadInput("this model has no learned position embedding: choose one that has, such as vit_base_patch16_224")
    height, width = model.patch_embed.grid_size
    embedding = model.pos_embed.detach().float()[0]
    patches = F.normalize(embedding[len(embedding) - height * width:], dim=-1)
    return (patches @ patches.T).reshape(height, width, height, width)


@torch.no_grad()
def attention_maps(model, images, blocks=(-1,)):
    """The model's output, and the attention of some of its blocks.

    `images` is (B, 3, H, W), preprocessed. Returns (logits (B, classes), maps): one tensor (B, heads, N, N) a block,
    whose rows, softmax(q k^T / sqrt(d)), sum to 1. The model runs once as it is, fused attention included; each
    block's maps are computed again from the input that its attention received. Raises BadInput for a block that the
    model does not have, and for attention modules of another kind.
    """
    modules = []
    for block in blocks:
        if not -len(model.blocks) <= block < len(model.blocks):
            raise BadInput(f"there is no block {block}: the model has {len(model.blocks)}")
        module = getattr(model.blocks[block], "attn", None)
        if type(module) is not Attention:
            raise BadInput(f"block {block} has no plain self-attention to show: choose a plain VisionTransformer")
        modules.append(module)
    inputs = {}
    hooks = [module.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module, args[0]))
             for module in modules]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [attention(module, inputs[module]) for module in modules]


def attention(module, tokens):
    """softmax(q k^T / sqrt(d)) of a timm `Attention` module for its input (B, N, C): (B, heads, N, N), float32."""
    batch, length, _ = tokens.shape
    qkv = module.qkv(tokens).reshape(batch, length, 3, module.num_heads, module.head_dim)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    query, key = module.q_norm(query).float(), module.k_norm(key).float()
    return (query @ key.transpose(-2, -1) * module.scale).softmax(-1)


def cls_to_patch(maps, model):
    """The [CLS] row of attention maps (..., N, N), patches only, not renormalised: (..., H, W).

    Raises BadInput for a model without a [CLS] token.
    """
    if getattr(model, "cls_token", None) is None:
        raise BadInput("this model has no [CLS] token: choose one that has, such as vit_base_patch16_224")
    height, width = model.patch_embed.grid_size
    row = maps[..., 0, model.num_prefix_tokens:]
    return row.reshape(*row.shape[:-1], height, width)
