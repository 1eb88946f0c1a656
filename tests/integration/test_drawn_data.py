"""The two drawn data sets from the command line, and the demo's as a whole."""

import json

import numpy as np

from datasets import decode, images, scenes, shapes


def test_shapes_are_written_by_a_command(tmp_path, capsys):
    assert shapes.main(["--output", str(tmp_path / "set"), "--classes", "pretrain", "--train-per-class", "1",
                        "--val-per-class", "1", "--seed", "1"]) == 0
    assert (tmp_path / "set" / "classes.txt").read_text().splitlines() == shapes.PRETRAIN_CLASSES
    assert len(images.list_files(tmp_path / "set" / "train")) == 18
    draw = json.loads((tmp_path / "set" / "draw.json").read_text())
    assert draw["seed"] == 1 and draw["radius"] == list(shapes.PRETRAIN_RADIUS)
    assert "18 classes, 18 images to train on, 18 to validate on" in capsys.readouterr().out


def test_scenes_are_written_by_a_command(tmp_path, capsys):
    assert scenes.main(["--output", str(tmp_path / "set"), "--train", "2", "--val", "0"]) == 0
    content = json.loads((tmp_path / "set" / "annotations" / "captions_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.jpg", "1.jpg"]
    assert "2 scenes to train on, 0 to validate on" in capsys.readouterr().out


def test_a_linear_classifier_on_pixels_fails(tmp_path):
    folder = shapes.write_dataset(tmp_path / "set", train_per_class=60, val_per_class=20)

    def load(split):
        names = images.list_files(folder / split)
        pixels = [np.asarray(decode.load_image(folder / split / name).resize((32, 32))).ravel() / 255
                  for name in names]
        return np.stack(pixels), np.array([int(images.label_of(name)) for name in names])

    (x, y), (x_val, y_val) = load("train"), load("val")
    mean = x.mean(0)
    kernel, kernel_val = (x - mean) @ (x - mean).T, (x_val - mean) @ (x - mean).T
    best = 0
    for strength in (1e-1, 1e1, 1e2, 1e3, 1e4):  # ridge regression on the one-hot labels, in its dual form
        weights = np.linalg.solve(kernel + strength * np.eye(len(x)), np.eye(10)[y] - 0.1)
        best = max(best, ((kernel_val @ weights).argmax(1) == y_val).mean())
    assert 0.1 < best < 0.5
