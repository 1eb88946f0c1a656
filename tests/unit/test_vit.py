import re

import pytest
import timm
import torch

from common.errors import BadInput
from models import vit
from models.probe import Features

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}


def test_a_typing_error_gets_the_nearest_names():
    with pytest.raises(BadInput, match="did you mean .*vit_base_patch16_224"):
        vit.build("vit_bose_patch16_224")
    with pytest.raises(BadInput, match="did you mean deit_tiny_patch16_224"):
        vit.build("deit_tinny_patch16_224")
    with pytest.raises(BadInput, match="--arch test_vit.nonsense: .* it has test_vit.r160_in1k"):
        vit.build("test_vit.nonsense")
    with pytest.raises(BadInput, match="is a ResNet: name a timm VisionTransformer"):
        vit.build("resnet10t")


@pytest.mark.parametrize("arch, mean, size", [
    ("vit_tiny_patch16_224", [0.5, 0.5, 0.5], 224), ("deit_tiny_patch16_224", [0.485, 0.456, 0.406], 224),
    ("vit_base_patch16_clip_224.openai", [0.4815, 0.4578, 0.4082], 224), ("test_vit", [0.5, 0.5, 0.5], 160),
])
def test_preprocessing_is_the_models_own(arch, mean, size):
    with torch.device("meta"):  # it does not depend on the weights
        config = vit.preprocessing(vit.build(arch))
    assert config["mean"] == pytest.approx(mean, abs=1e-4) and config["input_size"] == [3, size, size]


def test_scratch_is_random_and_needs_no_weights():
    torch.manual_seed(0)
    (one, message), (other, _) = (vit.create("test_vit", 3, scratch=True) for _ in range(2))
    assert not torch.equal(one.patch_embed.proj.weight, other.patch_embed.proj.weight) and message is None


def test_the_numbers_that_describe_a_model():
    model = timm.create_model("test_vit", num_classes=3)
    assert vit.describe(model) == {"parameters": sum(value.numel() for value in model.state_dict().values()),
                                   "width": 64, "heads": 2, "depth": 6}


# One for each pair of a block and a pooling that timm has, with its heads.
KINDS = {
    "vit_tiny_patch16_224": 3, "vit_base_patch16_gap_224": 16, "test_vit3": 3,  # Block; token, avg, map
    "deit_tiny_distilled_patch16_224": 3, "beit_base_patch16_224": 12, "vit_base_patch16_rpn_224": 12,
    "vit_small_patch16_18x2_224": 6, "vit_base_patch16_xp_224": 12, "vit_pwee_patch16_reg1_gap_256": 4,
    "vit_dwee_patch16_reg1_gap_256": 4, "vit_dpwee_patch16_reg1_gap_256": 4,
    "eva02_tiny_patch14_224": 3, "eva02_base_patch16_clip_224": 12, "eva02_enormous_patch14_clip_224": 16,
    "vit_base_patch16_rope_224": 12, "vit_pe_spatial_tiny_patch16_512": 3, "vit_pe_core_base_patch16_224": 12,
}


@pytest.mark.parametrize("arch", KINDS)
def test_every_kind_of_block_and_pooling_can_be_trained(arch):
    """Described, with layer decay, its features probed and with a new head; without memory or time."""
    with torch.device("meta"):
        model = timm.create_model(arch, depth=1)
        assert vit.describe(model)["heads"] == KINDS[arch] and vit.layer_groups(model, 0.7)
        images = torch.zeros(2, *vit.preprocessing(model)["input_size"])
        features = Features(model)(images)
        assert features.shape == (2, model.head_hidden_size)
        model.reset_classifier(3)
        assert model(images).shape == (2, 3)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224",
                                  "eva02_tiny_patch14_224"])
def test_layer_decay_gives_each_parameter_the_rate_of_the_formula(arch):
    """Layer 0 is the embedding, block b is layer b + 1, a norm after it is of the last block, one after the
    pooling is of the head, layer depth + 1."""
    model = timm.create_model(arch, **TINY)
    groups = vit.layer_groups(model, 0.7)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        layer = (int(block[1]) + 1 if block else TINY["depth"] + 1 if name.startswith(("head.", "fc_norm."))
                 else
                 TINY["depth"] if name.startswith("norm.") else 0)
        if name.startswith("norm_pre.") and "norm_pre" not in model.group_matcher()["stem"]:
            layer = TINY["depth"]  # for timm before 1.0.31
        assert scale[id(parameter)] == pytest.approx(0.7 ** (TINY["depth"] + 1 - layer)), name
    assert all(group.keys() == {"params", "lr_scale"} for group in groups)
