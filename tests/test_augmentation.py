import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import images, transforms
from datasets.transforms import Mixing
from tests.helpers.training import metrics, train

PREPROCESSING = {"input_size": [3, 32, 32], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
                 "crop_mode": "center"}


def views(number=40, **flags):
    """Of a photo with a gradient, as tensors."""
    x = np.linspace(0, 255, 64, dtype=np.uint8)
    photo = Image.fromarray(np.stack([np.tile(x, (64, 1)), np.tile(x[:, None], (1, 64)), np.full((64, 64), 128, np.uint8)], 2))
    transform = transforms.training_transform(PREPROCESSING, **flags)
    with images.random_streams(1):
        return torch.stack([transform(photo) for _ in range(number)])


def test_each_flag_does_what_it_says():
    """In a crop of the gradient the colours span what part of the photo was kept, unless its colours are changed, too."""
    spans = {least: (view := views(crop_scale=least)).amax((2, 3)).sub(view.amin((2, 3)))[:, :2].div(2).prod(1)
             for least in (0.1, 0.9)}
    assert spans[0.1].min() < 0.3 and spans[0.9].min() > 0.75
    plain = views()
    assert plain[:, 2].sub(128 / 127.5 - 1).abs().max() < 0.02, "the third channel is constant"
    assert (views(rand_augment=7)[:, 2].sub(128 / 127.5 - 1).abs().amax((1, 2)) > 0.1).float().mean() > 0.05
    erased = (views(random_erasing=0.5)[:, 2].sub(128 / 127.5 - 1).abs() > 0.05).float().mean((1, 2))
    assert 0.3 < (erased > 0).float().mean() < 0.7 and 0.02 < erased[erased > 0].mean() < 0.34
    noise = views(1, random_erasing=1.0)[0, 2]
    assert len(noise[(noise - noise.median()).abs() > 0.05].unique()) > 10, "noise, and not one colour"


def test_augmented_images_do_not_depend_on_the_workers(shapes):
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    transform = transforms.training_transform(PREPROCESSING, 0.3, 9, 0.9)
    dataset = images.ImageDataset(folder.root, folder.names, folder.targets, transform, seed=5)
    keys = [[(1, i), (1, i + 1)] for i in range(0, 8, 2)]
    alone, shared = (torch.cat([batch for batch, _ in DataLoader(dataset, batch_sampler=keys, num_workers=n)]) for n in (0, 2))
    assert torch.equal(alone, shared)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0), (0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_targets_follow_the_shares_of_the_pixels(mixup, cutmix, size):
    """Image i is i everywhere, and so is its class: the pixels of a mixed image say what is in it."""
    mix = Mixing(mixup, cutmix, 0.0, size)
    blended = pasted = 0
    for seed in range(30):
        np.random.seed(seed), random.seed(seed)
        batch, shares = mix(torch.arange(float(size))[:, None, None, None].expand(size, 3, 8, 8).clone(), torch.arange(size))
        assert torch.allclose(shares.sum(1), torch.ones(size)) and (shares >= 0).all()
        assert torch.allclose(batch.mean((1, 2, 3)), shares @ torch.arange(float(size)), atol=1e-5)
        blended += any(not value.is_integer() for value in batch.unique().tolist())
        pasted += any(len(image.unique()) > 1 for image in batch)
        if size % 2:
            assert (batch[-1] == size - 1).all() and shares[-1, -1] == 1
        partner = (size // 2 * 2 - 1) - torch.arange(size // 2 * 2)
        for i, j in enumerate(partner):
            assert shares[i, i] + shares[i, j] == pytest.approx(1)
    assert (blended > 3) == (size > 1 and mixup > 0) and (pasted > 3) == (size > 1 and cutmix > 0)


def test_smoothed_shares_and_an_image_without_a_class():
    _, shares = Mixing(0.5, 0, 0.2, 4)(torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 2]))
    assert torch.allclose(shares[2], torch.tensor([0.05, 0.05, 0.85, 0.05]))
    assert shares[:2].min().item() == pytest.approx(0.05) and torch.allclose(shares.sum(1), torch.ones(3))
    _, shares = Mixing(0.5, 0, 0.2, 4)(torch.zeros(1, 3, 4, 4), torch.tensor([-100]))
    assert not shares.any()


def test_both_passes_of_sam_see_the_same_mixed_images(shapes, tmp_path, monkeypatch):
    """Without a climb, SAM takes Adam's steps: it would not if the second pass mixed anew."""
    flags = ["--epochs", 1, "--mixup", 0.5, "--cutmix", 1, "--label-smoothing", 0.1, "--optimizer", "adam"]
    assert train(shapes, tmp_path / "sam", *flags, "--sam", "--rho", 0) == 0
    assert train(shapes, tmp_path / "adam", *flags) == 0
    one, other = metrics(tmp_path / "sam")[0], metrics(tmp_path / "adam")[0]
    assert one["train_loss"] == other["train_loss"] and one["holdout_loss"] == other["holdout_loss"]
    assert int(one["passes"]) == 2 * int(other["passes"]) == 8


def test_the_loss_is_the_smoothed_one(shapes, tmp_path):
    """With a rate of zero; the head's output is the same with and without, so the mean over wrong classes is the difference."""
    losses = {}
    for smoothing in (0, 0.25, 0.5):
        output = tmp_path / str(smoothing)
        assert train(shapes, output, "--epochs", 1, "--lr", 0, "--optimizer", "adam", "--label-smoothing", smoothing) == 0
        losses[smoothing] = float(metrics(output)[0]["train_loss"])
    assert losses[0.25] != losses[0]
    assert losses[0.25] - losses[0] == pytest.approx((losses[0.5] - losses[0]) / 2, rel=1e-3), "it is linear in the share"
