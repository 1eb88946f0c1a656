"""Checkpoints of ours: opened as they were saved, and refused where a stranger changed them."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import BadInput
from datasets.transforms import evaluation_transform
from models import vit
from models.checkpoint import FIELDS, checkpoint_fields, open_checkpoint
from tests.helpers.checkpoints import checkpoint, write_checkpoint
from tests.helpers.fuzzing import examples
from tests.helpers.strangers import grown


def test_the_fields_are_those_that_are_read():
    assert checkpoint().keys() == FIELDS and "state_dict" not in checkpoint_fields("test_vit", [], [], {})


@pytest.mark.parametrize("arch, size", [
    ("test_vit", None), ("test_vit", (96, 64)), ("eva02_tiny_patch14_224", None),
    ("eva02_tiny_patch14_224", (84, 56))])
def test_an_opened_checkpoint_has_all_that_was_saved_and_what_no_checkpoint_holds(tmp_path, arch, size):
    torch.manual_seed(1)
    model = timm.create_model(arch, num_classes=3, **({"img_size": size} if size else {})).eval()
    rotary = any(name not in model.state_dict() for name, _ in model.named_buffers())
    assert rotary == (arch != "test_vit")
    path = write_checkpoint(tmp_path / "checkpoint.pt", arch=arch, class_names=["A", "B", "C"],
                            state_dict=model.state_dict(), settings={"lr": 1},
                            preprocessing=vit.preprocessing(model))
    opened = open_checkpoint(path)
    images = torch.randn(2, *opened.preprocessing["input_size"])
    with torch.no_grad():
        assert torch.equal(opened.model(images), model(images)) and not opened.model.training
    assert opened.path == path and opened.arch == arch and opened.settings == {"lr": 1}
    assert opened.labels == ["0", "1", "2"] and opened.class_names == ["A", "B", "C"]
    assert opened.preprocessing == vit.preprocessing(model)
    assert not size or opened.preprocessing["input_size"] == [3, *size]


def test_checkpoints_that_are_none_are_refused(tmp_path):
    content = checkpoint()
    for name, changed, words in (
            ("weights", content["state_dict"], "--arch and --weights"),
            ("list", [content], "--arch and --weights"),
            ("partial", {key: content[key] for key in FIELDS - {"preprocessing"}},
             "no checkpoint of p1_train.py"),
            ("unheard", {**content, "arch": "vit_unheard_of"}, "unheard.pt: --arch vit_unheard_of"),
            ("newer", {**content, "format": 2}, "format 2, and this version reads 1"),
            ("mixed", {**content, "arch": "vit_tiny_patch16_224"}, "do not fit its own architecture")):
        torch.save(changed, tmp_path / f"{name}.pt")
        with pytest.raises(BadInput, match=words):
            open_checkpoint(tmp_path / f"{name}.pt")


# Changed by a stranger --------------------------------------------------------------------------------------

CONTENT = checkpoint()
PREPROCESSING = CONTENT["preprocessing"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"arch": "vit_giant_patch16_gap_224"}, "do not fit its own architecture"),
    ({"arch": 7}, "does not say which model"),
    ({"labels": "0123"}, "does not say"),
    ({"labels": []}, "of which classes"),
    ({"labels": ["0", "1", "2", 3]}, "of which classes"),
    ({"class_names": ["a"]}, "of which classes"),
    ({"state_dict": [1]}, "holds no state dict"),
    ({"state_dict": {"head.bias": 1}}, "holds no state dict .head.bias is no plain tensor"),
    ({"preprocessing": 3}, "its crop, size or normalisation do"),
    ({"preprocessing": {**PREPROCESSING, "input_size": [3, 10**6, 10**6]}},
     "its crop, size or normalisation"),
    ({"preprocessing": {**PREPROCESSING, "input_size": [3, 96, 96]}}, "its weights .* .pos_embed is"),
    ({"preprocessing": {**PREPROCESSING, "input_size": [3, 97, 96]}}, "image size 97x96: each side must be"),
    ({"preprocessing": {**PREPROCESSING, "crop_pct": 1e-9}}, "its crop, size or normalisation"),
    ({"preprocessing": {**PREPROCESSING, "std": [0.5, 0.5, 0.0]}}, "its crop, size or normalisation"),
    ({"preprocessing": {**PREPROCESSING, "mean": [0.5]}}, "its crop, size or normalisation"),
    ({"preprocessing": {**PREPROCESSING, "interpolation": "best"}}, "its crop, size or normalisation"),
    ({"preprocessing": {**PREPROCESSING, "more": 1}}, "its crop, size or normalisation"),
])
def test_a_changed_checkpoint_is_refused(tmp_path, changes, words):
    path = tmp_path / "changed.pt"
    torch.save({**CONTENT, **changes}, path)

    def read():
        with pytest.raises(BadInput, match=f"^{path}.* {words}"):
            open_checkpoint(path)

    assert grown(read) < 200


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                   st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(),
                                                                        max_size=2),
                   st.integers(0, 10**13).map(lambda size: torch.zeros(1).expand(size)))


@examples(10)
@given(data=st.data())
def test_any_field_of_any_value_is_read_or_refused(tmp_path, data):
    """Whatever one field holds, the checkpoint evaluates a photo, or the error is one line."""
    content = copy.deepcopy(CONTENT)
    inner = data.draw(st.sampled_from(["", "preprocessing", "state_dict"]))
    fields = content[inner] if inner else content
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
    path = tmp_path / "changed.pt"
    torch.save(content, path)
    try:
        opened = open_checkpoint(path)
    except BadInput as error:
        assert "\n" not in str(error)
        return
    photo = evaluation_transform(opened.preprocessing)(Image.new("RGB", (40, 30)))
    with torch.no_grad():
        assert opened.model(photo[None]).shape == (1, len(opened.labels))
