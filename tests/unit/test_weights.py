import argparse
import re

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from common.errors import BadInput
from models import vit
from models.weights import load_finite, load_weights, refuse_other_keys, state_dict_in
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.training import same

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def weights(tmp_path):
    """Random test_vit weights with a head of 5 classes, as a safetensors file."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=5).state_dict(), path)
    return path


def backbone(state):
    return {key: value for key, value in state.items() if not key.startswith("head.")}


# Into a model -----------------------------------------------------------------------------------------------


def test_weights_of_every_container_load_alike(weights, tmp_path):
    state = safetensors.torch.load_file(weights)
    flags = argparse.Namespace(epochs=3, output="runs/mae")
    for name, content in (("plain.pth", state), ("wrapped.pt", {"state_dict": state, "epoch": 3}),
                          ("model.bin", {"model": state}), ("both.pt", {"state_dict": {"model": state}}),
                          ("torch.tar", {"model_state_dict": state}), ("deepspeed.pt", {"module": state}),
                          ("mae.pth", {"model": state, "args": flags})):
        torch.save(content, tmp_path / name)
        model, message = vit.create("test_vit", 5, tmp_path / name)
        assert same(model.state_dict(), state) and message is None
    model, message = vit.create("test_vit", 5, weights)
    assert same(model.state_dict(), state) and message is None


@pytest.mark.parametrize("rename, more", [
    (lambda key: f"module.{key}", {}), (lambda key: f"_orig_mod.module.{key}", {}),
    (lambda key: f"model.{key}", {"loss.weight": torch.ones(5)}),  # Lightning, and its other modules
    (lambda key: f"module.{key}", {"n_averaged": torch.tensor(3)}),  # torch.optim.swa_utils
    (lambda key: re.sub(r"(blocks\.\d)", r"\1._orig_mod", key), {}),  # each block compiled by itself
    (lambda key: f"teacher.backbone._fsdp_wrapped_module.{key}", {"student.cls_token": torch.ones(1)}),
])
def test_names_that_wrappers_put_before_the_keys_do_not_matter(weights, tmp_path, rename, more):
    state = safetensors.torch.load_file(weights)
    renamed = {rename(key): value for key, value in state.items()}
    torch.save({"state_dict": renamed | more}, tmp_path / "w.ckpt")
    model, message = vit.create("test_vit", 5, tmp_path / "w.ckpt")
    assert same(model.state_dict(), state) and message is None


def googles(state, heads):
    """A timm state dict under the names and in the shapes of Google's .npz files."""
    plain = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding",
             "patch_embed.proj.bias": "embedding/bias", "head.bias": "head/bias",
             "norm.weight": "Transformer/encoder_norm/scale", "norm.bias": "Transformer/encoder_norm/bias"}
    state = {key: value.numpy() for key, value in state.items()}
    arrays = {name: state[key] for key, name in plain.items()}
    arrays["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    arrays["head/kernel"] = state["head.weight"].T
    for i in range(6):
        block, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for ours, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{name}/scale"] = state[f"{block}{ours}.weight"]
            arrays[f"{theirs}{name}/bias"] = state[f"{block}{ours}.bias"]
        for ours, name in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{theirs}MlpBlock_3/{name}/kernel"] = state[f"{block}mlp.{ours}.weight"].T
            arrays[f"{theirs}MlpBlock_3/{name}/bias"] = state[f"{block}mlp.{ours}.bias"]
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for j, name in enumerate(("query", "key", "value")):
            weight, bias = (np.split(state[f"{block}attn.qkv.{part}"], 3)[j] for part in ("weight", "bias"))
            arrays[f"{attention}{name}/kernel"] = weight.T.reshape(64, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, 64)
        arrays[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
    return arrays


def test_googles_own_files_load_as_timm_converts_them(weights, tmp_path):
    state = safetensors.torch.load_file(weights)
    arrays = googles(state, heads=2)
    np.savez(tmp_path / "vit.npz", **arrays)
    (tmp_path / "vit.npz").rename(tmp_path / "vit")  # the content says what it is
    model, message = vit.create("test_vit", weights=tmp_path / "vit")
    assert same(model.state_dict(), state) and message is None
    model, message = vit.create("test_vit", 3, tmp_path / "vit")
    assert message == "the head of vit (5 classes) is replaced by a new one (3 classes)"
    assert same(backbone(model.state_dict()), backbone(state))
    more = {key.replace("block_5", "block_6"): array for key, array in arrays.items()}
    np.savez(tmp_path / "deeper.npz", **(arrays | more))
    for arch, name in (("test_vit", "deeper.npz"), ("deit_tiny_patch16_224", "vit"),
                       ("eva02_tiny_patch14_224", "vit"), ("vit_small_patch16_18x2_224", "vit")):
        with pytest.raises(BadInput, match=f"{name} does not fit {arch}: name the --arch"):
            vit.create(arch, 5, tmp_path / name)


def test_a_head_of_another_size_is_replaced_and_said_so(weights):
    model, message = vit.create("test_vit", 7, weights)
    assert message == "the head of weights.safetensors (5 classes) is replaced by a new one (7 classes)"
    assert model.head.weight.shape == (7, 64)
    state = safetensors.torch.load_file(weights)
    assert same(backbone(model.state_dict()), backbone(state))
    torch.save({**state, "head.scale": torch.ones(5)}, weights.with_suffix(".pt"))  # and of another kind
    assert vit.create("test_vit", 7, weights.with_suffix(".pt"))[1].endswith("by a new one (7 classes)")


def test_a_file_without_a_head_gets_a_new_one(weights, tmp_path):
    torch.save(backbone(safetensors.torch.load_file(weights)), tmp_path / "headless.pt")
    model, message = vit.create("test_vit", 3, tmp_path / "headless.pt")
    assert model.head.weight.shape == (3, 64)
    assert message == "headless.pt has no head: a new one (3 classes) takes its place"


def test_without_a_number_of_classes_the_model_takes_the_head_of_the_file(weights):
    model, message = vit.create("test_vit", weights=weights)
    assert same(model.state_dict(), safetensors.torch.load_file(weights)) and message is None


def test_weights_in_the_layout_of_deit3_are_converted(tmp_path):
    model = timm.create_model("deit3_small_patch16_224", num_classes=3, **TINY)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)
    original = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
                for key, value in model.state_dict().items()}
    torch.save({"model": original}, tmp_path / "deit3.pth")
    other = timm.create_model("deit3_small_patch16_224", num_classes=3, **TINY)
    assert load_weights(other, "deit3_small_patch16_224", tmp_path / "deit3.pth") is None
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("arch", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_the_other_classes_load_their_weights_too(tmp_path, arch):
    model, other = (timm.create_model(arch, num_classes=5, **TINY) for _ in range(2))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(other, arch, tmp_path / "weights.safetensors") is None
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("arch, options", [
    ("vit_tiny_patch16_224", TINY), ("deit_tiny_distilled_patch16_224", TINY),
    ("beit_base_patch16_224", {**TINY, "use_rel_pos_bias": True}), ("eva02_tiny_patch14_224", TINY)])
def test_positions_are_resampled_to_another_image_size_as_plain_timm_does(tmp_path, arch, options):
    """Of a weights file, and of a checkpoint of ours that was trained with another size."""
    patch, path = int(arch.split("patch")[1][:2]), tmp_path / "weights.pt"
    small, large = [6 * patch, 6 * patch], [9 * patch, 7 * patch]
    model = timm.create_model(arch, num_classes=5, **options)
    if not hasattr(model, "set_input_size"):
        pytest.skip(f"timm {timm.__version__} has none for it")
    for trained, given in ((None, small), (small, None), (small, large)):
        about = {"preprocessing": {"input_size": [3, *trained]}} if trained else {}
        torch.save({"state_dict": model.state_dict(), **about}, path)
        size = given or trained
        overlay = {"file": str(path), "num_classes": 5, "custom_load": False}
        expected = timm.create_model(arch, pretrained=True, img_size=size, num_classes=5, **options,
                                     pretrained_cfg_overlay=overlay)
        model = timm.create_model(arch, num_classes=5, **options)
        assert load_weights(model, arch, path, image_size=given) is None
        assert same(model.state_dict(), expected.state_dict())
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(model.eval()(images), expected.eval()(images))
    with pytest.raises(BadInput, match="image size 97x64: each side must be a multiple of the patch"):
        load_weights(model, arch, path, image_size=(97, 64))


def test_a_distilled_model_takes_both_heads_or_two_new_ones(tmp_path):
    arch = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(arch, num_classes=5, **TINY)
    torch.save(model.state_dict(), tmp_path / "distilled.pt")
    other, third = (timm.create_model(arch, num_classes=classes, **TINY) for classes in (5, 2))
    assert load_weights(other, arch, tmp_path / "distilled.pt") is None
    assert same(model.state_dict(), other.state_dict())
    assert load_weights(third, arch, tmp_path / "distilled.pt").endswith("by a new one (2 classes)")
    assert len(third.head.weight) == len(third.head_dist.weight) == 2
    assert torch.equal(third.cls_token, model.cls_token)


@pytest.mark.real_data
def test_real_weights_load_as_timm_loads_them(real_data):
    name = "vit_tiny_patch16_224"
    path = real_data / "weights" / f"{name}.augreg_in21k_ft_in1k.safetensors"
    overlay = {"file": str(path), "custom_load": False}
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    model, message = vit.create(name, weights=path)
    assert same(model.state_dict(), expected) and message is None
    model, message = vit.create(name, 37, path)
    assert same(backbone(model.state_dict()), backbone(expected)) and "1000 classes" in message


# What does not fit ------------------------------------------------------------------------------------------


def test_files_that_do_not_fit_are_refused_by_name(weights, tmp_path):
    with pytest.raises(BadInput, match="does not fit vit_tiny_patch16_224.*--arch that it was made for"):
        vit.create("vit_tiny_patch16_224", 5, weights)
    with pytest.raises(BadInput, match="it was made for test_vit"):
        vit.create("deit_tiny_patch16_224", 5, write_checkpoint(tmp_path / "ours.pt"))
    with pytest.raises(BadInput, match="does not exist"):
        vit.create("test_vit", 5, tmp_path / "missing.pt")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": {"head.bias": torch.tensor(1.0)}}, tmp_path / "scalar.pt")
    for name in ("cut.safetensors", "text.pt", "empty.pt", "list.pt", "scalar.pt"):
        with pytest.raises(BadInput, match=name):
            vit.create("test_vit", 5, tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_other_layouts_and_other_files_are_named(tmp_path):
    model = torchvision.models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64)
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    torch.save({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(1)},
               tmp_path / "transformers.bin")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), tmp_path / "script.pt")
    (tmp_path / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22\n")
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html><html>")
    for name, words in (("torchvision.pth", "has the layout of torchvision: take timm's weights"),
                        ("transformers.bin", "has the layout of transformers: take timm's weights"),
                        ("script.pt", "is a TorchScript program: load it with torch.jit.load"),
                        ("pointer.safetensors", "is a Git LFS pointer, not the file itself: run `git lfs"),
                        ("page.pth", "is a web page, not the file itself")):
        with pytest.raises(BadInput, match=re.escape(f"{tmp_path / name} {words}")):
            vit.create("test_vit", 5, tmp_path / name)


@pytest.mark.parametrize("change, words", [
    (lambda state: state.pop("bias"), "(bias is missing): "),
    (lambda state: state.update(more=torch.zeros(1)), "(more is unknown): "),
    (lambda state: state.update(weight=torch.zeros(2, 4)), "(weight is (2, 4), not (2, 3)): "),
    (lambda state: state.update(weight=torch.zeros(()), more=torch.zeros(1)),
     "(more is unknown and 1 more): "),
    (lambda state: state.clear(), "(weight is missing and 1 more): "),
])
def test_the_first_key_that_does_not_fit_is_named(change, words):
    model = torch.nn.Linear(3, 2)
    state = model.state_dict()
    refuse_other_keys(state, model, "it does not fit", "take another")
    change(state)
    with pytest.raises(BadInput, match=re.escape(f"it does not fit {words}take another")):
        refuse_other_keys(state, model, "it does not fit", "take another")


@pytest.mark.parametrize("content, words", [
    ([1], ""), ({"state_dict": [1]}, " (state_dict is no plain tensor)"),
    ({"model": {"a": 3}}, " (a is no plain tensor)"),
    ({"a": torch.zeros(2, dtype=torch.complex64)}, " (a is no plain tensor)"),
    ({3: torch.zeros(2)}, " (3 is no plain tensor)"),
    ({"a": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}, " (a is no plain tensor)"),
])
def test_what_is_no_state_dict_is_said(content, words):
    with pytest.raises(BadInput, match=re.escape(f"x.pt holds no state dict{words}: copy it again")):
        state_dict_in(content, "x.pt", "copy it again")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused(value, dtype):
    """torch cannot ask numbers of eight bits whether they are finite."""
    model = torch.nn.Linear(2, 1, bias=False)
    load_finite(model, {"weight": torch.tensor([[1.0, 2.0]]).to(dtype)}, "w.pt")
    assert model.weight.dtype == torch.float32 and model.weight.tolist() == [[1, 2]]
    with pytest.raises(BadInput, match="w.pt: weight holds values that are not finite: take an earlier"):
        load_finite(model, {"weight": torch.tensor([[1.0, value]]).to(dtype)}, "w.pt")


def test_a_model_without_memory_takes_the_tensors_of_the_file():
    weight = torch.tensor([[1.0, 2.0]])
    model = torch.nn.Linear(2, 1, bias=False, device="meta")
    load_finite(model, {"weight": weight}, "w.pt")
    assert model.weight.data_ptr() == weight.data_ptr() and model.weight.requires_grad
    model = torch.nn.Linear(2, 1, bias=False, device="meta")
    load_finite(model, {"weight": weight.half()}, "w.pt")
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, weight)


def test_the_hub_has_the_time_that_its_library_gives_it(monkeypatch):
    """That a variable of the library shortens it is tested on a server that stays silent."""
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    for name in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, lambda *args, **limits: asked.append(limits))
    with pytest.raises(BadInput, match="cannot be fetched"):
        vit.create("test_vit.r160_in1k", 3)
    assert asked == [{"timeout": huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT}, {}]
