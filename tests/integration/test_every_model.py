"""All models of timm that `--arch` takes, without memory for their weights."""

import timm
import torch
from timm.layers import weight_init

from models import vit
from models.weights import CONVERSIONS


def test_every_model_of_the_four_modules_can_be_described_and_trained_with_layer_decay(monkeypatch):
    monkeypatch.setattr(weight_init, "_trunc_normal_", lambda tensor, *numbers: tensor)  # slow
    names = timm.list_models(module=vit.FAMILIES)
    assert len(names) > 200
    for name in names:
        grouped = {"num_kv_heads": 1} if "sapiens2" in name else {}  # theirs are a list of the full depth
        with torch.device("meta"):
            model = timm.create_model(name, depth=1, **grouped)
            assert isinstance(model, tuple(CONVERSIONS)), name
            assert vit.describe(model)["heads"] > 0 and vit.preprocessing(model), name
            scales = {group["lr_scale"] for group in vit.layer_groups(model, 0.5)}
        assert scales <= {0.25, 0.5, 1}, name
