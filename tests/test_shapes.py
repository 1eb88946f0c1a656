import json

import numpy as np
import pytest
from PIL import Image

from common.errors import BadInput
from datasets import decode, images
from datasets.shapes import DEMO_CLASSES, OUTLINES, PRETRAIN_CLASSES, draw_image, write_dataset


def test_the_same_seed_draws_the_same_set_and_another_seed_another(tmp_path):
    sets = [write_dataset(tmp_path / str(i), ["ring", "star"], (0.2, 0.3), 3, 2, seed) for i, seed in enumerate((1, 1, 2))]
    files = [{name: (folder / split / name).read_bytes() for split in ("train", "val")
              for name in images.list_files(folder / split)} for folder in sets]
    assert files[0] == files[1] != files[2]
    assert len(set(files[0].values())) == len(files[0]), "no image occurs twice"


def test_a_set_is_drawn_once_and_nothing_else_is_overwritten(tmp_path):
    folder = write_dataset(tmp_path / "set", ["ring", "star"], (0.2, 0.3), 1, 1)
    (folder / "train" / "mark").touch()
    write_dataset(folder, ["ring", "star"], (0.2, 0.3), 1, 1)
    assert (folder / "train" / "mark").exists()
    write_dataset(folder, ["ring", "star"], (0.2, 0.3), 2, 1)
    assert len(images.list_files(folder / "train")) == 4
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(BadInput, match="name another folder"):
        write_dataset(tmp_path / "thesis", ["ring", "star"], (0.2, 0.3), 1, 1)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "thesis"], "nothing half-written is left"


def test_every_shape_lies_whole_in_the_central_square_and_is_lighter_than_its_background():
    for label, name in enumerate(OUTLINES):
        for draw in range(4):
            image, mask = draw_image(name, np.random.default_rng([label, draw]), (0.15, 0.3))
            height, width = mask.shape
            rows, columns = np.nonzero(mask)
            side = min(height, width)
            assert np.abs(rows + 0.5 - height / 2).max() <= 0.45 * side + 1
            assert np.abs(columns + 0.5 - width / 2).max() <= 0.45 * side + 1
            assert 0.01 * side**2 < len(rows) < 0.3 * side**2
            assert set(np.unique(mask)) == {0, 255}
            assert image[mask == 255].mean() > image[mask == 0].mean() + 30


def test_the_demo_and_the_pretraining_have_no_class_in_common():
    assert len(DEMO_CLASSES) >= 8 and not set(DEMO_CLASSES) & set(PRETRAIN_CLASSES)
    assert set(DEMO_CLASSES) | set(PRETRAIN_CLASSES) == set(OUTLINES)


def test_masks_stand_beside_the_images(shapes):
    for split in ("train", "val"):
        for name in images.list_files(shapes / split):
            mask = Image.open(shapes / "masks" / split / name.replace(".jpg", ".png"))
            assert mask.size == Image.open(shapes / split / name).size
    assert (shapes / "classes.txt").read_text().split() == ["cross", "heart", "ring", "star"]
    assert json.loads((shapes / "draw.json").read_text())["seed"] == 7


def test_a_linear_classifier_on_pixels_fails(tmp_path):
    folder = write_dataset(tmp_path / "set")

    def load(split):
        names = images.list_files(folder / split)
        pixels = [np.asarray(decode.load_image(folder / split / name).resize((64, 64))).ravel() / 255 for name in names]
        return np.stack(pixels), np.array([int(images.label_of(name)) for name in names])

    (x, y), (x_val, y_val) = load("train"), load("val")
    mean = x.mean(0)
    kernel, kernel_val = (x - mean) @ (x - mean).T, (x_val - mean) @ (x - mean).T
    best = 0
    for strength in (1e-1, 1e1, 1e2, 1e3, 1e4):  # ridge regression on the one-hot labels, in its dual form
        weights = np.linalg.solve(kernel + strength * np.eye(len(x)), np.eye(10)[y] - 0.1)
        best = max(best, ((kernel_val @ weights).argmax(1) == y_val).mean())
    assert 0.1 < best < 0.5
