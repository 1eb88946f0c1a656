import csv
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import p1_eval
from datasets import decode, images, transforms
from engine import inference
from models.checkpoint import open_checkpoint


def evaluate(folder, run, *arguments, name="best.pt"):
    return p1_eval.main([str(folder), "--checkpoint", str(run / name), "--device", "cpu", "--workers", "0", *map(str, arguments)])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def copied(run, tmp_path):
    """A run folder of the test's own, since an evaluation writes into it."""
    return shutil.copytree(run, tmp_path / "run")


def test_scores_and_predictions(copied, shapes, tmp_path):
    pred, result = tmp_path / "new" / "pred.csv", tmp_path / "new" / "result.json"
    assert evaluate(shapes / "val", copied, pred, "--json", result) == 0
    header, *predicted = rows(pred)
    assert header == ["filename", "label"]
    assert [name for name, _ in predicted] == sorted(path.name for path in (shapes / "val").iterdir())
    content = json.loads(result.read_text())
    correct = sum(name.split("_")[0] == label for name, label in predicted)
    assert content["correct"] == correct and content["labelled"] == content["images"] == 16
    assert content["accuracy"] == correct / 16
    assert content["checkpoint_sha256"] == hashlib.sha256((copied / "best.pt").read_bytes()).hexdigest()
    assert list(content["per_class"]) == ["0", "1", "2", "3"] and content["per_class"]["2"]["name"] == "ring"
    assert all(row["labelled"] == 4 for row in content["per_class"].values())
    assert sum(row["correct"] for row in content["per_class"].values()) == correct
    assert (copied / "eval.json").read_bytes() == result.read_bytes()
    assert (copied / "pred.csv").read_bytes() == pred.read_bytes()


def test_batch_size_and_workers_change_nothing(copied, shapes, tmp_path):
    written = set()
    for i, (batch_size, workers) in enumerate([(1, 0), (7, 2), (64, 0), (64, 2)]):
        arguments = [tmp_path / f"{i}.csv", "--json", tmp_path / f"{i}.json", "--batch-size", batch_size, "--workers", workers]
        assert evaluate(shapes / "val", copied, *arguments) == 0
        written.add((tmp_path / f"{i}.csv").read_bytes() + (tmp_path / f"{i}.json").read_bytes())
    assert len(written) == 1


def test_expect_decides_the_exit_code(copied, shapes, tmp_path, capsys):
    assert evaluate(shapes / "val", copied, "--json", tmp_path / "r.json") == 0
    accuracy = json.loads((tmp_path / "r.json").read_text())["accuracy"]
    away = accuracy + (0.02 if accuracy < 0.9 else -0.02)
    assert evaluate(shapes / "val", copied, "--expect", accuracy) == 0
    assert evaluate(shapes / "val", copied, "--expect", away) == 1
    assert evaluate(shapes / "val", copied, "--expect", away, "--tolerance", 0.02) == 0
    (tmp_path / "unlabelled").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "unlabelled" / "a.png")
    capsys.readouterr()
    assert evaluate(tmp_path / "unlabelled", copied, "--expect", accuracy) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --expect")


def test_a_long_evaluation_says_how_long_it_will_take(copied, shapes, capsys, monkeypatch):
    monkeypatch.setattr(p1_eval, "LONG", 16)
    assert evaluate(shapes / "val", copied) == 0
    assert re.fullmatch(r"note: 16 images on cpu: about \d+ (seconds|minutes)\n", capsys.readouterr().err)
    monkeypatch.setattr(p1_eval, "LONG", 17)
    assert evaluate(shapes / "val", copied) == 0 and capsys.readouterr().err == ""


def test_the_expected_time_is_that_of_loading_and_of_the_model(monkeypatch):
    """By a clock that they move themselves: 30 ms to load an image, shared by three processes, and 20 ms to see it."""
    clock = [0.0]
    monkeypatch.setattr(inference.time, "perf_counter", lambda: clock[0])

    class Images:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            clock[0] += 0.03
            return torch.zeros(3, 4, 4), 0

    class Model(torch.nn.Module):
        calls = 0

        def forward(self, batch):
            clock[0] += 0.02 * len(batch) + (0 if self.calls else 9)  # to warm up
            self.calls += 1
            return batch.mean((2, 3))

    found = inference.expected_seconds(Model(), Images(), torch.device("cpu"), workers=3)
    assert found == pytest.approx(1000 * (0.02 + 0.03 / 3))
    assert [p1_eval.in_words(seconds) for seconds in (0.1, 42.4, 101, 600)] == ["2 seconds", "42 seconds", "2 minutes", "10 minutes"]


def test_names_may_be_anything(copied, shapes, tmp_path, capsys):
    folder = tmp_path / "any"
    (folder / "3").mkdir(parents=True)
    names = ["a, b.jpg", "Köter ß.jpg", "-dash.jpg", "99_1.jpg", "2_5.jpg", "3/inside.jpg", 'quote".jpg', "$5_^$.jpg"]
    for name in names:
        shutil.copy(shapes / "val" / "2_0.jpg", folder / name)
    assert evaluate(folder, copied, tmp_path / "pred.csv", "--json", tmp_path / "r.json") == 0
    header, *predicted = rows(tmp_path / "pred.csv")
    assert [name for name, _ in predicted] == sorted(names) and len({label for _, label in predicted}) == 1
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["labelled"] == 2 and content["images"] == 8, "2_5.jpg and 3/inside.jpg"
    assert "6 of 8 images carry no label" in capsys.readouterr().err


def test_nothing_labelled_is_no_accuracy(copied, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "photos" / "a.png")
    assert evaluate(tmp_path / "photos", copied, tmp_path / "p.csv", "--json", tmp_path / "r.json") == 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["accuracy"] is None and content["ci95"] is None and content["labelled"] == 0
    assert "1 images, none labelled" in capsys.readouterr().out


def test_bad_files_are_listed_or_skipped(copied, shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes / "val", tmp_path / "val")
    (folder / "0_0.jpg").write_bytes((folder / "0_0.jpg").read_bytes()[:800])
    (folder / "1_0.jpg").write_text("x")
    assert evaluate(folder, copied, tmp_path / "p.csv") == 2
    message = capsys.readouterr().err
    assert "2 files of 16" in message and "0_0.jpg: " in message and "1_0.jpg: not an image" in message
    assert not (tmp_path / "p.csv").exists()
    assert evaluate(folder, copied, tmp_path / "p.csv", "--skip-bad") == 0
    assert "left out 2 bad files: 0_0.jpg, 1_0.jpg" in capsys.readouterr().err
    assert len(rows(tmp_path / "p.csv")) == 15


def test_what_is_left_for_a_report(copied, shapes):
    checkpoint = open_checkpoint(copied / "best.pt")
    (copied / "val").mkdir()
    for path in (shapes / "val").iterdir():
        shutil.copy(path, copied / "val")
    shutil.copy(shapes / "val" / "2_0.jpg", copied / "val" / "unknown.jpg")
    assert evaluate(copied / "val", copied) == 0
    with np.load(copied / "eval.npz") as left:
        names = left["names"].tolist()
        assert names == [name for name, _ in rows(copied / "pred.csv")[1:]] and left["folder"] == str(copied / "val")
        assert left["labels"].tolist() == checkpoint.labels and left["class_names"].tolist() == checkpoint.class_names
        known = [-1 if name == "unknown.jpg" else checkpoint.labels.index(name.split("_")[0]) for name in names]
        assert left["targets"].tolist() == known and left["targets"][-1] == -1
        assert [checkpoint.labels[i] for i in left["probabilities"].argmax(1)] == [label for _, label in rows(copied / "pred.csv")[1:]]
        transform = transforms.evaluation_transform(checkpoint.preprocessing)
        with torch.no_grad():
            expected = torch.stack([checkpoint.model(transform(decode.load_image(copied / "val" / name))[None])[0]
                                    for name in names]).softmax(1)
        assert np.abs(left["probabilities"] - expected.numpy()).max() < 1e-5


def test_flip_gives_the_mean_probability_of_an_image_and_its_mirror_image(copied, shapes):
    checkpoint = open_checkpoint(copied / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    batch = torch.stack([transform(decode.load_image(shapes / "val" / name)) for name in images.list_files(shapes / "val")])
    with torch.no_grad():
        plain, mirrored = (checkpoint.model(one).softmax(1).numpy() for one in (batch, torch.flip(batch, [3])))
    for flags, expected in (([], plain), (["--flip"], (plain + mirrored) / 2)):
        assert evaluate(shapes / "val", copied, *flags) == 0
        assert np.abs(np.load(copied / "eval.npz")["probabilities"] - expected).max() < 1e-6
        assert json.loads((copied / "eval.json").read_text())["flip"] is bool(flags)
    assert np.abs(plain - mirrored).max() > 1e-4


def test_a_run_folder_that_is_gone_or_foreign_is_left_alone(copied, shapes, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(copied / "best.pt", tmp_path / "elsewhere" / "model.pt")
    assert evaluate(shapes / "val", tmp_path / "elsewhere", name="model.pt") == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["model.pt"]


def test_a_name_that_is_not_utf8_comes_back_as_its_bytes(copied, shapes, tmp_path):
    (tmp_path / "bytes").mkdir()
    shutil.copy(shapes / "val" / "2_0.jpg", os.fsencode(tmp_path / "bytes") + b"/2_\xff.jpg")
    assert evaluate(tmp_path / "bytes", copied, tmp_path / "p.csv") == 0
    assert (tmp_path / "p.csv").read_bytes().splitlines()[1].startswith(b"2_\xff.jpg,")
