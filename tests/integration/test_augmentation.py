"""What p1_train.py makes of the augmentation and label flags; tests/unit/test_transforms.py tests what they
mean."""

import pytest

from tests.helpers.training import metrics, train


def test_both_passes_of_sam_see_the_same_mixed_images(shapes, tmp_path, monkeypatch):
    """Without a climb, SAM takes Adam's steps: it would not if the second pass mixed anew."""
    flags = ["--epochs", 1, "--mixup", 0.5, "--cutmix", 1, "--label-smoothing", 0.1, "--optimizer", "adam"]
    assert train(shapes, tmp_path / "sam", *flags, "--sam", "--rho", 0) == 0
    assert train(shapes, tmp_path / "adam", *flags) == 0
    one, other = metrics(tmp_path / "sam")[0], metrics(tmp_path / "adam")[0]
    assert one["train_loss"] == other["train_loss"] and one["holdout_loss"] == other["holdout_loss"]
    assert int(one["passes"]) == 2 * int(other["passes"]) == 8


def test_the_loss_is_the_smoothed_one(shapes, tmp_path):
    """With a rate of zero; the head's output is the same with and without, so the mean over wrong classes is
    the difference."""
    losses = {}
    for smoothing in (0, 0.25, 0.5):
        output = tmp_path / str(smoothing)
        assert train(shapes, output, "--epochs", 1, "--lr", 0, "--optimizer", "adam", "--label-smoothing",
                     smoothing) == 0
        losses[smoothing] = float(metrics(output)[0]["train_loss"])
    assert losses[0.25] != losses[0]
    assert losses[0.25] - losses[0] == pytest.approx((losses[0.5] - losses[0]) / 2,
                                                     rel=1e-3), "it is linear in the share"
