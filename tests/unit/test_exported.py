"""Folders for timm and the hub, without a script."""

import json

import pytest
import timm
import torch

from common.errors import BadInput
from models import vit
from models.checkpoint import open_checkpoint
from models.exported import export
from models.weights import load_weights
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.training import same


@pytest.fixture(params=["test_vit", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224"])
def checkpoint(request, tmp_path):
    """Of a model whose images and crop are not its own."""
    torch.manual_seed(0)
    patch = 14 if "14" in request.param else 16
    model = timm.create_model(request.param, num_classes=3, img_size=(6 * patch, 4 * patch))
    return open_checkpoint(write_checkpoint(
        tmp_path / "best.pt", arch=request.param, class_names=["pug", "pug", "\N{SNOWMAN}"],
        labels=["1", "20", "300"], settings={"lr": 0.1, "sam": True, "ema": None},
        preprocessing={**vit.preprocessing(model), "crop_pct": 0.8}, state_dict=model.state_dict()))


def test_timm_and_we_load_the_same_model(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, *checkpoint.preprocessing["input_size"])
    with torch.no_grad():
        assert torch.equal(model(images), checkpoint.model(images))
    assert vit.preprocessing(model) == checkpoint.preprocessing
    assert model.pretrained_cfg["label_names"] == checkpoint.class_names
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644

    again = open_checkpoint(tmp_path / "out")
    assert again.path == tmp_path / "out" / "model.safetensors"
    for name in ("arch", "labels", "class_names", "preprocessing", "settings"):
        assert getattr(again, name) == getattr(checkpoint, name)
    assert same(again.model.state_dict(), checkpoint.model.state_dict())
    new = vit.build(checkpoint.arch, 3)
    assert load_weights(new, checkpoint.arch, tmp_path / "out") is None
    assert same(new.state_dict(), checkpoint.model.state_dict())


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", {"vit_pets": 3}, {"pretrained_cfg": {}}])
def test_a_folder_that_is_not_ours_is_one_line(tmp_path, config):
    export(open_checkpoint(write_checkpoint(tmp_path / "best.pt")), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    if isinstance(config, dict):
        config = json.dumps({**json.loads(file.read_text()), **config})
    file.unlink() if config is None else file.write_text(config)
    with pytest.raises(BadInput, match="config.json is none of p1_export.py .*model.safetensors as --weig"):
        open_checkpoint(tmp_path / "out")
