import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import images, transforms
from datasets.transforms import MixupCutMix
from models.vit import Normalise
from tests.helpers.photos import PREPROCESSING

# Evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, crop_pct", [("center", 0.9), ("center", 1.0), ("squash", 0.9),
                                            ("border", 0.9), ("border", 1.0)])
@pytest.mark.parametrize("input_size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 334), (70, 900), (40, 31), (3000, 2000)])
def test_the_crop_box_is_what_the_transform_keeps(size, input_size, mode, crop_pct):
    # The transform runs on pictures whose value is the pixel's position. It interpolates, so away from
    # edges the value at an output pixel says where in the photo that pixel lies.
    preprocessing = {**PREPROCESSING, "input_size": [3, *input_size], "crop_mode": mode, "crop_pct": crop_pct,
                     "interpolation": "bilinear"}
    left, top, right, bottom = transforms.crop_box(size, preprocessing)
    resize, crop = transforms.evaluation_transform(preprocessing).transforms[:2]
    crop.fill = 0  # where it pads, the colour is for three channels, and these pictures have one
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    for values, low, high, side, axis in ((columns, left, right, size[0], 1), (rows, top, bottom, size[1],
                                                                               0)):
        seen = np.asarray(crop(resize(Image.fromarray(values.astype(np.float32)))))
        seen = seen[seen.shape[0] // 2] if axis == 1 else seen[:, seen.shape[1] // 2]
        expected = low + (np.arange(len(seen)) + 0.5) * (high - low) / len(seen)
        scale = (high - low) / len(seen)
        inside = (expected > scale) & (expected < side - scale)
        assert inside.any()
        assert np.abs(seen - expected)[inside].max() < 0.1 * scale


def test_the_evaluation_transform_is_the_models_own():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8))
    expected = photo.resize((92, 71), Image.Resampling.BICUBIC).crop((14, 4, 78, 68))  # 71 = floor(64 / 0.9)
    expected = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(transforms.evaluation_transform(PREPROCESSING)(photo), expected, rtol=0,
                               atol=1e-6)


@pytest.mark.parametrize("mean, std", [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.485, 0.456, 0.406),
                                                                            (0.229, 0.224, 0.225))])
def test_pixels_normalised_in_a_batch_are_the_same_bits(mean, std):
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (90, 100 + i, 3), dtype=np.uint8)) for i in range(3)]
    preprocessing = {**PREPROCESSING, "mean": list(mean), "std": list(std)}
    pixels = torch.stack([transforms.evaluation_pixels(preprocessing)(photo) for photo in photos])
    assert pixels.dtype == torch.uint8
    expected = torch.stack([transforms.evaluation_transform(preprocessing)(photo) for photo in photos])
    assert torch.equal(Normalise(preprocessing)(pixels), expected)


# Training ---------------------------------------------------------------------------------------------------


def views(number=40, **flags):
    """Of a photo with a gradient, normalised."""
    x = np.linspace(0, 255, 64, dtype=np.uint8)
    photo = Image.fromarray(np.stack([np.tile(x, (64, 1)), np.tile(x[:, None], (1, 64)),
                                      np.full((64, 64), 128, np.uint8)], 2))
    transform = transforms.training_transform({**PREPROCESSING, "input_size": [3, 32, 32]}, **flags)
    with images.random_streams(1):
        return Normalise(PREPROCESSING)(torch.stack([transform(photo) for _ in range(number)]))


def test_each_flag_does_what_it_says():
    """In a crop of the gradient the colours span what part of the photo was kept, unless its colours are
    changed, too."""
    spans = {least: (view := views(crop_scale=least)).amax((2, 3)).sub(view.amin((2, 3)))[:,
                                                                                          :2].div(2).prod(1)
             for least in (0.1, 0.9)}
    assert spans[0.1].min() < 0.3 and spans[0.9].min() > 0.75
    plain = views()
    assert plain[:, 2].sub(128 / 127.5 - 1).abs().max() < 0.02, "the third channel is constant"
    assert (views(rand_augment=7)[:, 2].sub(128 / 127.5 - 1).abs().amax((1, 2)) > 0.1).float().mean() > 0.05
    erased = (views(random_erasing=0.5)[:, 2].sub(128 / 127.5 - 1).abs() > 0.05).float().mean((1, 2))
    assert 0.3 < (erased > 0).float().mean() < 0.7 and 0.02 < erased[erased > 0].mean() < 0.34
    noise = views(1, random_erasing=1.0)[0, 2]
    assert len(noise[(noise - noise.median()).abs() > 0.05].unique()) > 10, "noise, and not one colour"


@pytest.mark.parametrize("magnitude, erasing", [(0, 0), (9, 0), (0, 1.0)])
def test_views_have_the_bits_of_timms_and_erased_ones_its_noise_clipped(magnitude, erasing):
    preprocessing = {**PREPROCESSING, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    normalise = Normalise(preprocessing)
    operations = f"rand-m{magnitude}-mstd0.5-inc1" if magnitude else None
    plain, timms = (timm.data.create_transform(
        **{**preprocessing, "input_size": (3, 64, 64)}, is_training=True, scale=(0.5, 1), color_jitter=None,
        auto_augment=operations, re_prob=probability, re_mode="pixel") for probability in (0, erasing))
    ours = transforms.training_transform(preprocessing, 0.5, magnitude, erasing)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 100, 3), dtype=np.uint8))
    lowest, highest = normalise(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)).split(1, 2)
    step = (highest - lowest) / 255
    for i in range(20):
        images_of = []
        for transform in (plain, timms, ours):
            with images.random_streams(i):
                images_of.append(transform(photo))
        unerased, expected, view = images_of[0], images_of[1], normalise(images_of[2])
        kept = unerased == expected
        assert torch.equal(view[kept], unerased[kept]) and kept.all() == (not erasing)
        clipped = torch.minimum(torch.maximum(expected, lowest), highest)
        assert ((view - clipped).abs() <= 0.501 * step).all()


def test_augmented_images_do_not_depend_on_the_workers(shapes):
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    transform = transforms.training_transform(PREPROCESSING, 0.3, 9, 0.9)
    dataset = images.ImageDataset(folder.root, folder.names, folder.targets, transform, seed=5)
    keys = [[(1, i), (1, i + 1)] for i in range(0, 8, 2)]
    alone, shared = (torch.cat([batch for batch, _ in DataLoader(dataset, batch_sampler=keys, num_workers=n)])
                     for n in (0, 2))
    assert torch.equal(alone, shared)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0), (0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_targets_follow_the_shares_of_the_pixels(mixup, cutmix, size):
    """Image i is i everywhere, and so is its class: the pixels of a mixed image say what is in it."""
    mix = MixupCutMix(mixup, cutmix, 0.0, size)
    blended = pasted = 0
    for seed in range(30):
        np.random.seed(seed), random.seed(seed)
        batch, shares = mix(torch.arange(float(size))[:, None, None, None].expand(size, 3, 8, 8).clone(),
                            torch.arange(size))
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
    _, shares = MixupCutMix(0.5, 0, 0.2, 4)(torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 2]))
    assert torch.allclose(shares[2], torch.tensor([0.05, 0.05, 0.85, 0.05]))
    assert shares[:2].min().item() == pytest.approx(0.05) and torch.allclose(shares.sum(1), torch.ones(3))
    _, shares = MixupCutMix(0.5, 0, 0.2, 4)(torch.zeros(1, 3, 4, 4), torch.tensor([-100]))
    assert not shares.any()
