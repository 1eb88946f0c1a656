"""Decoded images in memory: they change nothing but the time."""

import numpy as np
import pytest
import torch
from conftest import TRAIN
from PIL import Image

import p1_train
from common.errors import BadInput
from datasets.cache import GIB, Cache
from datasets.images import ImageDataset

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def photos(tmp_path):
    """A folder of six images of different sizes."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def dataset(folder, cache=None):
    return ImageDataset(folder, NAMES, range(6), lambda image: torch.from_numpy(np.array(image)), cache=cache)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_process_decoded_all_have(photos, workers):
    wanted = [dataset(photos)[i][0] for i in range(6)]
    loader = torch.utils.data.DataLoader(dataset(photos, Cache(0.001, NAMES)), batch_size=None, num_workers=workers,
                                         persistent_workers=workers > 0, multiprocessing_context="fork" if workers else None,
                                         sampler=[5, 3, 1, 0, 2, 4])
    assert len(list(loader)) == 6
    for name in NAMES:
        (photos / name).unlink()
    for index, (image, _) in zip([5, 3, 1, 0, 2, 4], loader):
        assert torch.equal(image, wanted[index])


def test_the_limit_holds_and_the_first_stay(photos):
    rows = 20 + 21 + 22  # of the first three images
    kept = dataset(photos, Cache(rows * 30 * 3 / GIB, NAMES))
    for _ in range(2):
        for i in range(6):
            kept[i]
    for name in NAMES:
        (photos / name).unlink()
    for i in range(3):
        assert kept[i][0].shape == (20 + i, 30, 3)
    for i in range(3, 6):
        with pytest.raises(BadInput, match=NAMES[i]):
            kept[i]


def test_training_comes_out_the_same(shapes, tmp_path):
    def weights(name, *flags):
        output = tmp_path / name
        assert p1_train.main(["--data", str(shapes), "--output", str(output), "--epochs", "2", *TRAIN, *flags]) == 0
        return torch.load(output / "best.pt", weights_only=True)["state_dict"]

    plain, cached, partly = weights("plain"), weights("cached", "--cache", "1", "--workers", "2"), weights("partly", "--cache", "0.0005")
    assert all(torch.equal(plain[key], cached[key]) and torch.equal(plain[key], partly[key]) for key in plain)


def test_more_than_the_machine_has_is_refused(shapes, tmp_path, capsys):
    assert p1_train.main(["--data", str(shapes), "--output", str(tmp_path / "o"), *TRAIN, "--cache", "1000000"]) == 2
    assert capsys.readouterr().err.startswith("error: --cache 1e+06: this machine has ")
