"""Which files models.catr.open_captioner takes for a captioner."""

import math

import pytest
import torch

from common.errors import BadInput
from datasets.scenes import VOCABULARY
from models import catr
from tests.helpers.captioner import write_captioner

UNKNOWN = "describes no captioner that this version knows"
BIAS = "mlp.layers.2.bias"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_captioner(tmp_path_factory.mktemp("captioner") / "best.pt")


@pytest.fixture
def saved(checkpoint):
    return torch.load(checkpoint, weights_only=True)


@pytest.mark.parametrize("change, expected", [
    (lambda saved: saved["state_dict"][BIAS].fill_(math.nan), f"{BIAS} holds values that are not finite"),
    (lambda saved: saved.update(vocabulary=5), "holds no list of tokens"),
    (lambda saved: saved.update(vocabulary=saved["vocabulary"][:20]), UNKNOWN),
    (lambda saved: saved["captioner"].update(heads=3), UNKNOWN),
    (lambda saved: saved["captioner"].update(width="x"), UNKNOWN),
    (lambda saved: saved["captioner"].update(longer_side=0), UNKNOWN),
    (lambda saved: saved["captioner"].update(colour=1), UNKNOWN),
    (lambda saved: saved.update(captioner=3), UNKNOWN),
    (lambda saved: saved.update(state_dict=[1]), "holds no state dict"),
    (lambda saved: saved["state_dict"].update({BIAS: 3}), f"{BIAS} is no plain tensor"),
])
def test_a_damaged_checkpoint_is_refused(saved, tmp_path, change, expected):
    change(saved)
    torch.save(saved, tmp_path / "damaged.pt")
    with pytest.raises(BadInput, match=expected):
        catr.open_captioner(tmp_path / "damaged.pt")


def test_half_precision_weights_open_in_full(saved, tmp_path):
    saved["state_dict"] = {key: value.half() for key, value in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "half.pt")
    assert {p.dtype for p in catr.open_captioner(tmp_path / "half.pt")[0].parameters()} == {torch.float32}


@pytest.mark.parametrize("file, vocabulary, expected", [
    ("best.pt", [*VOCABULARY[:-1], "word"], "carries: leave --vocab out"),
    ("catr.pth", None, "carries no vocabulary"), ("catr.pth", VOCABULARY[:9], "vocab.txt has 9 tokens and"),
    ("catr.pth", [*VOCABULARY[:-1], "##es"], "does not fit the captioner"),
    ("missing.pt", None, "missing.pt does not exist")])
def test_a_vocabulary_that_does_not_fit_is_refused(saved, tmp_path, file, vocabulary, expected):
    torch.save(saved, tmp_path / "best.pt")
    torch.save({"model": saved["state_dict"]}, tmp_path / "catr.pth")
    if vocabulary:
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    with pytest.raises(BadInput, match=expected):
        catr.open_captioner(tmp_path / file, vocabulary and tmp_path / "vocab.txt")
