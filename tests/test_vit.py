import contextlib
import hashlib
import http.server
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from common.errors import BadInput
from models import vit
from models.checkpoint import checkpoint_fields, open_checkpoint

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def weights(tmp_path):
    """Random test_vit weights with a head of 5 classes, as a safetensors file."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=5).state_dict(), path)
    return path


def backbone(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_typing_error_gets_the_nearest_names():
    with pytest.raises(BadInput, match="did you mean .*vit_base_patch16_224"):
        vit.build("vit_bose_patch16_224")
    with pytest.raises(BadInput, match="did you mean deit_tiny_patch16_224"):
        vit.build("deit_tinny_patch16_224")
    with pytest.raises(BadInput, match="--arch test_vit.nonsense: .* it has test_vit.r160_in1k"):
        vit.build("test_vit.nonsense")
    with pytest.raises(BadInput, match="is a ResNet: name a timm VisionTransformer"):
        vit.build("resnet10t")


def test_preprocessing_is_the_models_own():
    assert vit.preprocessing(vit.build("vit_tiny_patch16_224"))["mean"] == [0.5, 0.5, 0.5]
    config = vit.preprocessing(vit.build("deit_tiny_patch16_224"))
    assert config["mean"] == pytest.approx([0.485, 0.456, 0.406]) and config["input_size"] == [3, 224, 224]
    assert vit.preprocessing(vit.build("vit_base_patch16_clip_224.openai"))["mean"][0] == pytest.approx(0.4815, abs=1e-4)


def test_weights_of_every_container_load_alike(weights, tmp_path):
    state = safetensors.torch.load_file(weights)
    for name, content in (("plain.pth", state), ("wrapped.pt", {"state_dict": state, "epoch": 3}),
                          ("model.bin", {"model": state}), ("parallel.pt", {f"module.{k}": v for k, v in state.items()})):
        torch.save(content, tmp_path / name)
        model, told = vit.create("test_vit", 5, tmp_path / name)
        assert same(model.state_dict(), state) and told is None
    model, told = vit.create("test_vit", 5, weights)
    assert same(model.state_dict(), state) and told is None


def test_a_head_of_another_size_is_replaced_and_said_so(weights):
    model, told = vit.create("test_vit", 7, weights)
    assert told == "the head of weights.safetensors (5 classes) is replaced by a new one (7 classes)"
    assert model.head.weight.shape == (7, 64)
    assert same(backbone(model), backbone(vit.create("test_vit", 5, weights)[0]))


def test_a_file_without_a_head_gets_a_new_one(tmp_path):
    torch.save(backbone(timm.create_model("test_vit")), tmp_path / "headless.pt")
    model, told = vit.create("test_vit", 3, tmp_path / "headless.pt")
    assert model.head.weight.shape == (3, 64) and "has no head" in told


def test_without_a_wish_the_model_takes_the_head_of_the_file(weights):
    model, told = vit.create("test_vit", weights=weights)
    assert same(model.state_dict(), safetensors.torch.load_file(weights)) and told is None


def test_weights_in_the_layout_of_deit3_are_converted(tmp_path):
    model = timm.create_model("deit3_small_patch16_224", num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)
    original = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
                for key, value in model.state_dict().items()}
    torch.save({"model": original}, tmp_path / "deit3.pth")
    assert same(vit.create("deit3_small_patch16_224", 3, tmp_path / "deit3.pth")[0].state_dict(), model.state_dict())


def test_scratch_is_random_and_needs_no_weights():
    torch.manual_seed(0)
    one = vit.create("test_vit", 3, scratch=True)[0]
    other = vit.create("test_vit", 3, scratch=True)[0]
    assert not same(backbone(one), backbone(other))


def test_files_that_do_not_fit_are_refused_by_name(weights, tmp_path):
    with pytest.raises(BadInput, match="does not fit vit_tiny_patch16_224.*--arch that it was made for"):
        vit.create("vit_tiny_patch16_224", 5, weights)
    torch.save({**checkpoint_fields("test_vit", [], [], {}), "settings": {}, "state_dict": safetensors.torch.load_file(weights)}, tmp_path / "ours.pt")
    with pytest.raises(BadInput, match="it was made for test_vit"):
        vit.create("deit_tiny_patch16_224", 5, tmp_path / "ours.pt")
    with pytest.raises(BadInput, match="does not exist"):
        vit.create("test_vit", 5, tmp_path / "missing.pt")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("cut.safetensors", "text.pt", "empty.pt", "list.pt"):
        with pytest.raises(BadInput, match=name):
            vit.create("test_vit", 5, tmp_path / name)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "raw.pt"):
        with pytest.raises(BadInput, match=name):
            vit.create("test_vit", 5, tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_plain_timm_loads_a_checkpoint_of_ours(run):
    saved = torch.load(run / "best.pt", weights_only=True)
    model = timm.create_model(saved["arch"], num_classes=len(saved["labels"]), checkpoint_path=str(run / "best.pt"))
    assert same(model.state_dict(), saved["state_dict"])
    opened = open_checkpoint(run / "best.pt")
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(model.eval()(x), opened.model(x))
    assert opened.labels == ["0", "1", "2", "3"] and opened.class_names == ["cross", "heart", "ring", "star"]
    assert opened.preprocessing == vit.preprocessing(model)


def test_checkpoints_that_are_none_are_refused(run, weights, tmp_path):
    with pytest.raises(BadInput, match="--arch and --weights"):
        open_checkpoint(weights)
    saved = torch.load(run / "best.pt", weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "preprocessing"}, tmp_path / "partial.pt")
    with pytest.raises(BadInput, match="not a checkpoint"):
        open_checkpoint(tmp_path / "partial.pt")
    torch.save({**saved, "arch": "vit_unheard_of"}, tmp_path / "unheard.pt")
    with pytest.raises(BadInput, match="unheard.pt: --arch vit_unheard_of"):
        open_checkpoint(tmp_path / "unheard.pt")
    torch.save({**saved, "format": 2}, tmp_path / "newer.pt")
    with pytest.raises(BadInput, match="format 2"):
        open_checkpoint(tmp_path / "newer.pt")
    torch.save({**saved, "arch": "vit_tiny_patch16_224"}, tmp_path / "mixed.pt")
    with pytest.raises(BadInput, match="do not fit its own architecture"):
        open_checkpoint(tmp_path / "mixed.pt")


# The hub, played by a server on this machine


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for one repository, `timm/test_vit.r160_in1k`, with `model.safetensors`."""

    content = b""

    def do_HEAD(self):
        if self.path != "/timm/test_vit.r160_in1k/resolve/main/model.safetensors":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        return True

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(content):
    handler = type("Handler", (Hub,), {"content": content})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def fetch(endpoint, cache, arch="test_vit.r160_in1k"):
    """Create a pretrained model in a process of its own, since the hub's address is read at import."""
    code = f"""
        import sys
        from common.errors import BadInput
        from models import vit
        import torch
        try:
            model, told = vit.create({arch!r}, 3)
        except BadInput as error:
            sys.exit(f"error: {{error}}")
        print(told)
        print(model.norm.weight.sum().item())
    """
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=REPOSITORY,
                          env=environment, timeout=60)


def test_weights_come_from_the_hub_once_and_then_from_its_cache(tmp_path):
    model = timm.create_model("test_vit")
    torch.nn.init.uniform_(model.norm.weight)
    path = tmp_path / "hub.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    with serving(path.read_bytes()) as endpoint:
        first = fetch(endpoint, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    told, checksum = first.stdout.splitlines()[-2:]
    assert "1000 classes" in told and float(checksum) == model.norm.weight.sum().item()
    again = fetch(endpoint, tmp_path / "cache")  # the server is gone
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == checksum


def test_a_hub_without_the_file_or_out_of_reach_is_one_line_within_ten_seconds(tmp_path):
    with serving(b"") as endpoint:
        missing = fetch(endpoint, tmp_path, "test_vit2.r160_in1k")
    assert "timm/test_vit2.r160_in1k" in missing.stderr.splitlines()[-1] and "--weights" in missing.stderr

    silent = socket.create_server(("127.0.0.1", 0))  # takes the connection and never answers
    closed = socket.create_server(("127.0.0.1", 0))
    ports = [silent.getsockname()[1], closed.getsockname()[1]]
    closed.close()
    for port in ports:
        started = time.monotonic()
        outcome = fetch(f"http://127.0.0.1:{port}", tmp_path)
        assert time.monotonic() - started < 10 + 10  # 10 more, since a busy machine may import torch slowly
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("error: the weights timm/test_vit.r160_in1k cannot be fetched") and "--weights" in last
    silent.close()


@pytest.mark.real_data
def test_real_weights_load_as_timm_loads_them(real_data):
    name, path = "vit_tiny_patch16_224", real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    model, told = vit.create(name, weights=path)
    assert same(model.state_dict(), expected.state_dict()) and told is None
    model, told = vit.create(name, 37, path)
    assert same(backbone(model), backbone(expected)) and "1000 classes" in told


@pytest.mark.parametrize("arch", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_the_other_classes_load_their_weights_too(tmp_path, arch):
    torch.manual_seed(0)
    model = vit.build(arch, 5)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other, told = vit.create(arch, 5, tmp_path / "weights.safetensors")
    assert told is None and same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("arch, depth", [("test_vit", 6), ("vit_tiny_patch16_224", 12), ("eva02_tiny_patch14_224", 12)])
def test_layer_decay_gives_each_parameter_the_rate_of_the_formula(arch, depth):
    """Layer 0 is the embedding, block b is layer b + 1, a norm after it is of the last block, one after the
    pooling is of the head, layer depth + 1."""
    model = timm.create_model(arch, num_classes=3)
    groups = vit.layer_groups(model, 0.7)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        layer = (int(block[1]) + 1 if block else depth + 1 if name.startswith(("head.", "fc_norm.")) else
                 depth if name.startswith("norm.") else 0)
        assert scale[id(parameter)] == pytest.approx(0.7 ** (depth + 1 - layer)), name
    assert all(group.keys() == {"params", "lr_scale"} for group in groups)


@pytest.mark.parametrize("arch", ["test_vit", "eva02_tiny_patch14_224"])
def test_an_opened_checkpoint_has_all_that_was_saved_and_what_no_checkpoint_holds(tmp_path, arch):
    torch.manual_seed(1)
    model = timm.create_model(arch, num_classes=3).eval()
    assert (arch != "test_vit") == any(name not in model.state_dict() for name, _ in model.named_buffers())  # rotary positions
    path = tmp_path / "checkpoint.pt"
    torch.save({**checkpoint_fields(arch, "abc", "ABC", vit.preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(open_checkpoint(path).model(images), model(images))
