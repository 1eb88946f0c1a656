import math

import numpy as np
import pytest
import timm
import torch

from common.errors import BadInput
from models import vit
from models.attention import attention, attention_maps, cls_to_patch, position_similarity

WITH_CLS = {  # by their layout of tokens: what precedes the patches in the sequence, and in the position embedding
    "1 and 1": ("test_vit", {}),
    "2 and 2, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "5 and 5": ("test_vit", {"reg_tokens": 4}),
    "5 and 0": ("test_vit", {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True, "init_values": 1e-1}),
    "1 and 0, 15 x 12 patches": ("test_vit", {"no_embed_class": True, "img_size": (240, 192)}),
}
WITHOUT_CLS = {"1 register": ("test_vit2", {}), "attention pooling": ("test_vit3", {})}


def random_model(arch, options={}):
    torch.manual_seed(0)
    model = timm.create_model(arch, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def images_for(model, batch=2):
    return torch.randn(batch, 3, *model.patch_embed.img_size)


def last_attention_written_out(state, images, depth, heads, patch):
    """The last block's attention of a plain ViT from its weights: no timm module takes part."""

    def layer_norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(batch, 1, -1), tokens], 1) + state["pos_embed"]
    for i in range(depth):
        query, key, value = linear(layer_norm(tokens, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        split = [x.reshape(batch, -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (query, key, value)]
        scores = torch.einsum("bhnd,bhmd->bhnm", split[0], split[1]) / math.sqrt(split[0].shape[-1])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = torch.einsum("bhnm,bhmd->bhnd", weights, split[2]).transpose(1, 2).flatten(2)
        tokens = tokens + linear(mixed, f"blocks.{i}.attn.proj")
        hidden = linear(layer_norm(tokens, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + linear(hidden, f"blocks.{i}.mlp.fc2")
    return weights


def check_against_weights(model, images, depth, heads):
    expected = last_attention_written_out(model.state_dict(), images, depth, heads, 16)
    logits, (last,) = attention_maps(model, images)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
    assert torch.equal(logits, model(images))
    grid = cls_to_patch(last, model)
    for row, column in ((0, 0), (0, 3), (4, 0), (9, 9)):
        index = 1 + row * model.patch_embed.grid_size[1] + column
        torch.testing.assert_close(grid[:, :, row, column], expected[:, :, 0, index], rtol=0, atol=1e-5)


def test_the_last_attention_equals_one_computed_from_the_weights():
    model = random_model("test_vit")
    with torch.no_grad():
        check_against_weights(model, images_for(model), depth=6, heads=2)


@pytest.mark.real_data
def test_the_same_on_the_real_model_and_a_real_photo(real_data):
    from datasets import images

    path = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    model = vit.create("vit_tiny_patch16_224", weights=path)[0].eval()
    photo = images.load_image(real_data / "pets" / "named" / "31_4838.jpg")
    with torch.no_grad():
        check_against_weights(model, images.evaluation_transform(vit.preprocessing(model))(photo)[None], depth=12, heads=3)


@pytest.mark.parametrize("layout", [*WITH_CLS, *WITHOUT_CLS])
def test_the_maps_give_back_what_the_module_puts_out(layout):
    model = random_model(*{**WITH_CLS, **WITHOUT_CLS}[layout])
    module, kept = model.blocks[-1].attn, {}
    module.register_forward_hook(lambda module, args, output: kept.update(tokens=args[0], output=output))
    _, (first, last) = attention_maps(model, images_for(model), (0, -1))
    torch.testing.assert_close(last.sum(-1), torch.ones(last.shape[:-1]))
    with torch.no_grad():
        assert torch.equal(last, attention(module, kept["tokens"]))
        value = module.qkv(kept["tokens"]).chunk(3, -1)[2]
        value = value.reshape(*value.shape[:2], module.num_heads, -1).transpose(1, 2)
        output = module.proj((last @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, kept["output"], rtol=0, atol=1e-5)
    assert first.shape == last.shape and not torch.equal(first, last)


@pytest.mark.parametrize("layout", WITH_CLS)
def test_prefix_tokens_are_left_out_of_both_figures(layout):
    model = random_model(*WITH_CLS[layout])
    assert model.forward_features(images_for(model)).shape[1] == model.patch_embed.num_patches + int(layout[0])
    assert model.pos_embed.shape[1] == model.patch_embed.num_patches + int(layout[6])
    _, (last,) = attention_maps(model, images_for(model))
    grid = cls_to_patch(last, model)
    height, width = model.patch_embed.grid_size
    count = last.shape[-1]
    assert grid.shape == (2, model.blocks[0].attn.num_heads, height, width)
    assert torch.equal(grid.flatten(2), last[:, :, 0, count - height * width:])

    similarity = position_similarity(model)
    embedding = model.pos_embed.detach().numpy()[0].astype(float)[-height * width:]
    for a, b in ((0, 0), (0, 1), (5, 17), (height * width - 1, 3)):
        cosine = embedding[a] @ embedding[b] / np.linalg.norm(embedding[a]) / np.linalg.norm(embedding[b])
        assert similarity[a // width, a % width, b // width, b % width].item() == pytest.approx(cosine, abs=1e-6)
    assert similarity.shape == (height, width, height, width) and similarity.dtype == torch.float32


def test_the_model_comes_back_without_hooks():
    model = random_model("test_vit")
    attention_maps(model, images_for(model))
    with pytest.raises(RuntimeError):
        attention_maps(model, torch.randn(1, 4, 160, 160))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_shown_is_said():
    model = random_model("test_vit3")
    with pytest.raises(BadInput, match=r"no \[CLS\] token"):
        cls_to_patch(torch.zeros(1, 3, 101, 101), model)
    with pytest.raises(BadInput, match="there is no block 9"):
        attention_maps(random_model("test_vit"), torch.zeros(1, 3, 160, 160), (9,))
    parallel = timm.create_model("vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.ParallelScalingBlock)
    with pytest.raises(BadInput, match="no plain self-attention"):
        attention_maps(parallel, torch.zeros(1, 3, 224, 224))
    model.pos_embed = None
    with pytest.raises(BadInput, match="no learned position embedding"):
        position_similarity(model)


@pytest.mark.real_data
def test_real_position_embeddings_are_most_like_those_next_to_them(real_data):
    path = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    similarity = position_similarity(vit.create("vit_tiny_patch16_224", weights=path)[0]).numpy()
    for row in range(14):
        for column in range(14):
            others = similarity[row, column].copy()
            others[row, column] = -2
            nearest = np.unravel_index(others.argmax(), others.shape)
            assert abs(nearest[0] - row) + abs(nearest[1] - column) == 1
