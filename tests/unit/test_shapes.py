import json

import numpy as np
import pytest
from PIL import Image

from common.errors import BadInput
from datasets import images, shapes
from datasets.shapes import DEMO_CLASSES, OUTLINES, PRETRAIN_CLASSES, draw_image, drawn_once


def test_files_hold_the_draws_of_their_seeds(tmp_path):
    """A number for the seed, the split, the label and the image: no image occurs twice."""
    folder = shapes.write_dataset(tmp_path / "set", ["ring", "star"], (0.2, 0.3), 3, 2, seed=5)
    masks = set()
    for split, number, count in (("train", 0, 3), ("val", 1, 2)):
        names = [f"{label}_{i}.jpg" for label in range(2) for i in range(count)]
        assert images.list_files(folder / split) == names
        for name in names:
            label, i = int(name[0]), int(name[2])
            rng = np.random.default_rng([5, number, label, i])
            image, mask = draw_image(["ring", "star"][label], rng, (0.2, 0.3))
            saved = np.asarray(Image.open(folder / split / name))
            assert saved.shape == image.shape and np.abs(saved.astype(int) - image).mean() < 8  # JPEG
            saved_mask = np.asarray(Image.open(folder / "masks" / split / name.replace(".jpg", ".png")))
            assert np.array_equal(saved_mask, mask)
            masks.add(mask.tobytes())
    assert len(masks) == 10
    assert (folder / "classes.txt").read_text() == "ring\nstar\n"
    assert json.loads((folder / "draw.json").read_text()) == {
        "version": 1, "classes": ["ring", "star"], "radius": [0.2, 0.3], "train_per_class": 3,
        "val_per_class": 2,
        "seed": 5}


@pytest.mark.parametrize("name, area, row", [
    ("ring", 4211, [[53, 102, 62], [154, 181, 171], [143, 181, 163], [67, 90, 0]]),
    ("mushroom", 3929, [[53, 102, 62], [154, 181, 171], [57, 117, 28], [67, 90, 0]]),
    ("T", 3437, [[53, 102, 62], [68, 91, 29], [57, 117, 28], [67, 90, 0]]),
])
def test_the_demo_s_images_stay_what_they_are(name, area, row):
    """Results are compared across versions. By 1, since processors round sines differently."""
    image, mask = draw_image(name, np.random.default_rng([0, 0, 4, 7]))
    assert image.shape == (160, 184, 3) and abs((mask == 255).sum() - area) <= 2
    assert np.abs(image[60, ::60].astype(int) - row).max() <= 1


def test_a_set_is_drawn_once_and_nothing_else_is_overwritten(tmp_path):
    calls = []

    def fill(path):
        calls.append(path)
        (path / "photo").write_text("drawn")

    folder = tmp_path / "sets" / "one"
    assert drawn_once(folder, {"seed": 1}, {"photo"}, fill) == folder
    assert (folder / "photo").read_text() == "drawn" and folder.stat().st_mode & 0o777 == 0o755
    drawn_once(folder, {"seed": 1}, {"photo"}, fill)
    assert len(calls) == 1, "it is there already"
    drawn_once(folder, {"seed": 2}, {"photo"}, fill)
    assert len(calls) == 2 and json.loads((folder / "draw.json").read_text()) == {"seed": 2}
    (folder / "mine").write_text("mine")
    with pytest.raises(BadInput, match="name another folder"):
        drawn_once(folder, {"seed": 1}, {"photo"}, fill)
    (folder / "mine").unlink()

    def fail(path):
        (path / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        drawn_once(folder, {"seed": 1}, {"photo"}, fail)
    assert len(calls) == 2 and sorted(path.name for path in folder.iterdir()) == ["draw.json", "photo"]
    assert [path.name for path in folder.parent.iterdir()] == ["one"], "nothing half-written is left"


def test_of_two_processes_that_draw_the_same_set_the_slower_one_takes_the_other_s(tmp_path, monkeypatch):
    def fill(path):
        (path / "photo").write_text("slow")
        drawn_once(tmp_path / "set", {"seed": 1}, {"photo"},
                   lambda other: (other / "photo").write_text("fast"))

    monkeypatch.setattr(shapes.shutil, "rmtree", lambda *args,
                        **kwargs: None)  # the other finishes after that
    drawn_once(tmp_path / "set", {"seed": 1}, {"photo"}, fill)
    assert (tmp_path / "set" / "photo").read_text() == "fast"


def test_every_shape_lies_whole_in_the_central_square_and_is_lighter_than_its_background():
    for label, name in enumerate(OUTLINES):
        for draw in range(2):
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
