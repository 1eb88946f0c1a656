import math

import numpy as np
import pytest
import timm
import torch

from common.errors import BadInput
from datasets import decode, transforms
from interpret.attention import _ExplicitAttention, attention_maps, cls_to_patch, patch_grid, rollout
from interpret.positions import position_similarity
from models import vit

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}
WITH_CLS = {  # by the number of tokens before the patches, in the sequence and in the position embedding
    "1 and 1": ("test_vit", {}),
    "2 and 2, distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 160}),
    "5 and 5": ("test_vit", {"reg_tokens": 4}),
    "5 and 0": ("test_vit", {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True, "init_values": 1e-1}),
    "1 and 0, 15 x 12 patches": ("test_vit", {"no_embed_class": True, "img_size": (240, 192)}),
}
PARALLEL = {"block_fn": timm.models.vision_transformer.ParallelScalingBlock, "qkv_bias": False}
ARCHITECTURES = {  # what each has that others have not
    **WITH_CLS,
    "no [CLS], 1 register": ("test_vit2", {}),
    "attention pooling": ("test_vit3", {}),
    "patches of 32": ("vit_small_patch32_224", SMALL),
    "patches of 14, LayerScale": ("vit_small_patch14_dinov2", {**SMALL, "img_size": 112}),
    "patches of 8": ("vit_small_patch8_224", {**SMALL, "img_size": 64}),
    "relative positions": ("beit_base_patch16_224", {**SMALL, "img_size": 96}),
    "relative positions shared by blocks": ("beit_base_patch16_224", {
        **SMALL, "img_size": 96, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
    "learned and rotary positions, SwiGLU": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 112}),
    "rotary positions, 4 registers": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 96}),
    "parallel branches": ("vit_small_patch16_18x2_224", {**SMALL, "img_size": 96}),
    "parallel block": ("test_vit", {**PARALLEL, "qk_norm": True}),
    "scaled attention, separate projections": ("eva02_tiny_patch14_224", {
        **SMALL, "img_size": 112, "scale_attn_inner": True, "qkv_fused": False}),
    "attention with a norm": ("test_vit", {"scale_attn_norm": True}),
}


def random_model(arch, options=None):
    torch.manual_seed(0)
    model = timm.create_model(arch, **(options or {})).eval()
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
        qkv = linear(layer_norm(tokens, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        split = [x.reshape(batch, -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in qkv]
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
    grid = cls_to_patch(last, model, patch_grid(model, images.shape[-2:]))
    for row, column in ((0, 0), (0, 3), (4, 0), (9, 9)):
        index = 1 + row * model.patch_embed.grid_size[1] + column
        torch.testing.assert_close(grid[:, :, row, column], expected[:, :, 0, index], rtol=0, atol=1e-5)


def test_the_last_attention_equals_one_computed_from_the_weights():
    model = random_model("test_vit")
    with torch.no_grad():
        check_against_weights(model, images_for(model), depth=6, heads=2)


@pytest.mark.real_data
def test_the_same_on_the_real_model_and_a_real_photo(real_data):
    path = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    model = vit.create("vit_tiny_patch16_224", weights=path)[0].eval()
    photo = decode.load_image(real_data / "pets" / "named" / "31_4838.jpg")
    with torch.no_grad():
        image = transforms.evaluation_transform(vit.preprocessing(model))(photo)
        check_against_weights(model, image[None], depth=12, heads=3)


def values_of(module, tokens):
    """The values (B, heads, N, d) of an attention module of timm for its input."""
    if getattr(module, "q_bias", None) is not None:
        qkv = tokens @ module.qkv.weight.T + torch.cat([module.q_bias, module.k_bias, module.v_bias])
        value = qkv.chunk(3, -1)[2]
    else:
        value = module.qkv(tokens).chunk(3, -1)[2] if module.qkv is not None else module.v_proj(tokens)
    return value.reshape(*value.shape[:2], module.num_heads, -1).transpose(1, 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_maps_are_those_of_the_model(name):
    """They give back what the attention modules put out, and are what timm's own slow path computes."""
    model = random_model(*ARCHITECTURES[name])
    inputs, block = images_for(model), model.blocks[-1]
    modules = [module for module in block.modules() if hasattr(module, "fused_attn")]
    calls, slow = [], []

    def record(module, args, output):
        calls.append((module, args[0], output))

    hooks = [module.register_forward_hook(record) for module in modules]
    logits, (first, last) = attention_maps(model, inputs, (0, -1))
    torch.testing.assert_close(last.sum(-1), torch.ones(last.shape[:-1]), rtol=0, atol=1e-5)
    assert last.dtype == torch.float32 and all(module.fused_attn for module in modules)
    assert first.shape == last.shape and not torch.equal(first, last)

    calls = calls[:len(modules)]  # of the model's run; the block's second one comes after it
    with torch.no_grad():
        for part, (module, tokens, output) in zip(last.chunk(len(modules), 1), calls, strict=True):
            if hasattr(module, "proj"):
                mixed = (part @ values_of(module, tokens)).transpose(1, 2).flatten(2)
                mixed = module.norm(mixed) if hasattr(module, "norm") else mixed
                mixed = module.proj(mixed)
            else:  # a block whose attention and MLP stand side by side
                hidden, _, _, value = module.in_proj(module.in_norm(tokens)).split(module.in_split, -1)
                hidden = hidden + module.mlp_bias
                value = value.reshape(*value.shape[:2], module.num_heads, -1).transpose(1, 2)
                mixed = module.attn_out_proj((part @ value).transpose(1, 2).flatten(2))
                mixed = tokens + module.ls(mixed + module.mlp_out_proj(module.mlp_act(hidden)))
            torch.testing.assert_close(mixed, output, rtol=0, atol=1e-5)
        for hook in hooks:
            hook.remove()
        for module in modules:
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda module, args: slow.append(args[0]))
        torch.testing.assert_close(model(inputs), logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(last, torch.cat(slow, 1), rtol=0, atol=1e-5)
    _, (unfused,) = attention_maps(model, inputs)
    torch.testing.assert_close(unfused, last, rtol=0, atol=0)
    assert not any(module.fused_attn for module in modules), "the slow path stays chosen"


@pytest.mark.parametrize("arguments", [
    {}, {"scale": 0.7}, {"attn_mask": torch.arange(25).reshape(5, 5) % 3 > 0},
    {"attn_mask": torch.arange(25.0).reshape(5, 5) / 10}], ids=["plain", "scale", "bool mask", "float mask"])
def test_attention_in_steps_is_that_of_torch(arguments):
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, **arguments)
    with _ExplicitAttention() as explicit:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, **arguments)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(explicit.maps[0] @ value, expected, rtol=0, atol=1e-6)


def test_maps_of_a_batch_are_those_of_its_images():
    model = random_model("test_vit")
    inputs = images_for(model, 3)
    _, (together,) = attention_maps(model, inputs)
    for i in range(3):
        _, (alone,) = attention_maps(model, inputs[i:i + 1])
        torch.testing.assert_close(together[i:i + 1], alone, rtol=0, atol=1e-6)


def test_maps_under_autocast_are_those_of_its_queries_and_keys():
    model = random_model("test_vit")
    inputs = images_for(model)
    exact = attention_maps(model, inputs)[1][0]
    with torch.autocast("cpu", torch.bfloat16):
        logits, (last,) = attention_maps(model, inputs)
    assert logits.dtype == torch.bfloat16 and last.dtype == torch.float32
    torch.testing.assert_close(last.sum(-1), torch.ones(last.shape[:-1]), rtol=0, atol=1e-5)
    assert 0 < (last - exact).abs().max() < 0.02 * exact.max()


@pytest.mark.parametrize("how", ["the model", "in place", "its blocks"])
def test_a_compiled_model_has_the_same_maps(how):
    model = random_model("test_vit", {"depth": 2})
    inputs = images_for(model)
    logits, (expected,) = attention_maps(model, inputs)
    compiled = model
    if how == "the model":
        compiled = torch.compile(model, backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    else:
        for i, block in enumerate(model.blocks):
            model.blocks[i] = torch.compile(block, backend="aot_eager")
    with torch.no_grad():
        compiled(inputs)  # now it is compiled, without hooks
    again, (last,) = attention_maps(compiled, inputs)
    assert torch.equal(last, expected) and torch.equal(again, logits)


@pytest.mark.parametrize("arch, options, size", [
    ("vit_tiny_patch16_224", SMALL, (384, 384)),
    ("vit_small_patch14_dinov2", {**SMALL, "img_size": 112}, (140, 84)),
    ("beit_base_patch16_224", {**SMALL, "img_size": 96}, (96, 160)),
    ("vit_small_patch16_dinov3", {**SMALL, "img_size": 96}, (160, 128)),
    ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 160}, (96, 160)),
])
def test_another_image_size(arch, options, size):
    model = random_model(arch, options)
    patch = model.patch_embed.patch_size[0]
    if not hasattr(model, "set_input_size"):
        pytest.skip(f"timm {timm.__version__} has none for it")
    vit.set_image_size(model, size)
    inputs = torch.randn(1, 3, *size)
    _, (last,) = attention_maps(model, inputs)
    grid = patch_grid(model, inputs.shape[-2:])
    assert grid == (size[0] // patch, size[1] // patch)
    assert last.shape[-1] == model.num_prefix_tokens + grid[0] * grid[1]
    assert cls_to_patch(last, model, grid).shape[2:] == grid
    if model.pos_embed is not None:
        assert position_similarity(model).shape == (*grid, *grid)
    with pytest.raises(BadInput, match="multiple of the patch"):
        vit.set_image_size(model, (size[0] + 1, size[1]))


def test_a_model_that_timm_cannot_resize_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.Beit, "set_input_size", raising=False)
    with pytest.raises(BadInput, match=r"timm .* cannot resize a Beit: pip install 'timm>=1.0.31'"):
        vit.set_image_size(random_model("beit_base_patch16_224", {**SMALL, "img_size": 96}), (96, 160))


def test_images_of_any_size_where_the_model_takes_them():
    model = random_model("test_vit", {"dynamic_img_size": True})
    for size in ((160, 160), (192, 112)):
        inputs = torch.randn(1, 3, *size)
        _, (last,) = attention_maps(model, inputs)
        grid = patch_grid(model, inputs.shape[-2:])
        assert grid == (size[0] // 16, size[1] // 16)
        assert cls_to_patch(last, model, grid).shape == (1, 2, *grid)


@pytest.mark.parametrize("layout", WITH_CLS)
def test_prefix_tokens_are_left_out_of_both_figures(layout):
    model = random_model(*WITH_CLS[layout])
    inputs, patches = images_for(model), model.patch_embed.num_patches
    assert model.forward_features(inputs).shape[1] == patches + int(layout[0])
    assert model.pos_embed.shape[1] == patches + int(layout[6])
    _, (last,) = attention_maps(model, inputs)
    grid = cls_to_patch(last, model, patch_grid(model, inputs.shape[-2:]))
    height, width = model.patch_embed.grid_size
    count = last.shape[-1]
    assert grid.shape == (2, model.blocks[0].attn.num_heads, height, width)
    assert torch.equal(grid.flatten(2), last[:, :, 0, count - height * width:])

    similarity = position_similarity(model)
    embedding = model.pos_embed.detach().numpy()[0].astype(float)[-height * width:]
    for a, b in ((0, 0), (0, 1), (5, 17), (height * width - 1, 3)):
        cosine = embedding[a] @ embedding[b] / np.linalg.norm(embedding[a]) / np.linalg.norm(embedding[b])
        of_pair = similarity[a // width, a % width, b // width, b % width].item()
        assert of_pair == pytest.approx(cosine, abs=1e-6)
    assert similarity.shape == (height, width, height, width) and similarity.dtype == torch.float32


def test_the_model_comes_back_without_hooks():
    model = random_model("test_vit")
    attention_maps(model, images_for(model))
    with pytest.raises(RuntimeError):
        attention_maps(model, torch.randn(1, 4, 160, 160))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_what_is_asked_for_is_refused():
    model = random_model("test_vit3")
    with pytest.raises(BadInput, match=r"no \[CLS\] token.*such as vit_base_patch16_224"):
        cls_to_patch(torch.zeros(1, 3, 101, 101), model, (10, 10))
    with pytest.raises(BadInput, match="there is no block 9"):
        attention_maps(random_model("test_vit"), torch.zeros(1, 3, 160, 160), (9,))
    with pytest.raises(BadInput, match="block 5: DiffAttention of timm .* does not just weigh values"):
        attention_maps(timm.create_model("test_vit", attn_layer="diff"), torch.zeros(1, 3, 160, 160))


def gate(attention):
    attention.norm = torch.nn.SiLU()  # before the projection


def scale_slow_path(attention):
    attention.fused_attn, attention.scale = False, 2 * attention.scale


def mix_without_torch(attention):
    attention.forward = lambda tokens, **options: attention.proj(tokens - tokens.mean(1, keepdim=True))


@pytest.mark.parametrize("change", [gate, scale_slow_path, mix_without_torch])
def test_a_library_that_computes_its_attention_otherwise_is_refused(change):
    """Such as a timm to come: no map is better than a wrong one."""
    model = random_model("test_vit")
    change(model.blocks[3].attn)
    inputs = images_for(model)
    attention_maps(model, inputs, (2, 4, 5))
    with pytest.raises(BadInput, match="block 3: Attention of timm .* does not just weigh values"):
        attention_maps(model, inputs, range(6))


def test_rollout_is_the_product_of_the_mixed_maps():
    maps = [torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(3)]
    product = rollout(maps)
    for image in range(2):
        expected = np.eye(5)
        for block in maps:
            expected = (block[image].numpy().mean(0) * 0.5 + np.eye(5) * 0.5) @ expected
        np.testing.assert_allclose(product[image], expected, atol=1e-6)
    torch.testing.assert_close(product.sum(-1), torch.ones(2, 5))
