import csv
import json
import os
import shutil

import numpy as np
import pytest
import timm
import torch

import p1_eval
from datasets import decode, transforms
from models import vit
from models.checkpoint import open_checkpoint
from tests.helpers.training import same


def evaluate(folder, run, *arguments):
    return p1_eval.main([str(folder), "--checkpoint", str(run / "best.pt"), "--device", "cpu", "--workers",
                         "0",
                         *map(str, arguments)])


def rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def run(run, tmp_path_factory):
    """Evaluation writes into it."""
    return shutil.copytree(run, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def copied(run, tmp_path):
    """A run folder of the test's own, since an evaluation writes into it."""
    return shutil.copytree(run, tmp_path / "run")


def test_scores_and_predictions_of_files_of_any_name(copied, shapes, tmp_path, capsys):
    """Against the model on each photo by itself. A name that is not UTF-8 comes back as its bytes."""
    folder = shutil.copytree(shapes / "val", tmp_path / "val")
    (folder / "3").mkdir()
    more = ["a, b.jpg", "Köter ß.jpg", "-dash.jpg", "99_1.jpg", "2_5.jpg", "3/inside.jpg", 'quote".jpg',
            "$5_^$.jpg",
            os.fsdecode(b"2_\xff.jpg")]
    for name in more:
        shutil.copy(shapes / "val" / "2_0.jpg", folder / name)
    csv_file, json_file = tmp_path / "new" / "pred.csv", tmp_path / "new" / "result.json"
    assert evaluate(folder, copied, csv_file, "--json", json_file) == 0
    printed = capsys.readouterr()
    assert "6 of 25 images carry no label" in printed.err

    header, *predictions = rows(csv_file)
    names = sorted([*(path.name for path in (shapes / "val").iterdir()), *more])
    assert header == ["filename", "label"] and [name for name, _ in predictions] == names
    checkpoint = open_checkpoint(copied / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    with torch.no_grad():
        expected = torch.stack([checkpoint.model(transform(decode.load_image(folder / name))[None])[0]
                                for name in names]).softmax(1)
    assert [label for _, label in predictions] == [checkpoint.labels[i] for i in expected.argmax(1)]
    for name in ("99_1.jpg", "Köter ß.jpg"):
        row = expected[names.index(name)]
        line = f"{name}: {checkpoint.class_names[row.argmax()]}, probability {row.max():.2f}"
        assert line in printed.out.splitlines()

    content = json.loads(json_file.read_text())
    labels = [name.split("/")[0] if "/" in name else name.split("_")[0] for name in names]
    right = [label == guess for label, (_, guess) in zip(labels, predictions) if label in checkpoint.labels]
    assert (content["labelled"], content["images"], content["correct"]) == (19, 25, sum(right))
    assert content["accuracy"] == sum(right) / 19 and f"accuracy {sum(right) / 19:.4f}" in printed.out
    assert content["per_class"]["2"]["labelled"] == 6 and content["per_class"]["2"]["name"] == "ring"
    assert (copied / "eval.json").read_bytes() == json_file.read_bytes()
    assert (copied / "pred.csv").read_bytes() == csv_file.read_bytes()
    with np.load(copied / "eval.npz") as arrays:
        assert arrays["names"].tolist() == names and arrays["folder"] == str(folder)
        assert np.abs(arrays["probabilities"] - expected.numpy()).max() < 1e-5
    accuracy = content["accuracy"]
    assert evaluate(folder, copied, "--expect", accuracy + (0.02 if accuracy < 0.9 else -0.02)) == 1


def test_batch_size_and_workers_change_nothing(copied, shapes, tmp_path):
    written = set()
    for i, (batch_size, workers) in enumerate([(1, 0), (7, 2), (64, 0)]):
        files = tmp_path / f"{i}.csv", tmp_path / f"{i}.json"
        arguments = [files[0], "--json", files[1], "--batch-size", batch_size, "--workers", workers]
        assert evaluate(shapes / "val", copied, *arguments) == 0
        written.add(files[0].read_bytes() + files[1].read_bytes())
    assert len(written) == 1


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


def test_plain_timm_loads_the_checkpoint_of_a_run(run):
    saved = torch.load(run / "best.pt", weights_only=True)
    model = timm.create_model(saved["arch"], num_classes=len(saved["labels"]),
                              checkpoint_path=str(run / "best.pt"))
    assert same(model.state_dict(), saved["state_dict"])
    opened = open_checkpoint(run / "best.pt")
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), opened.model(x))
    assert opened.labels == ["0", "1", "2", "3"] and opened.class_names == ["cross", "heart", "ring", "star"]
    assert opened.preprocessing == vit.preprocessing(model)


def test_a_folder_too_high_is_answered_with_the_one_that_is_meant(copied, shapes, capsys):
    for arguments in [], ["--skip-bad"]:
        assert evaluate(shapes, copied, *arguments) == 2
        assert capsys.readouterr().err == (f"error: {shapes} is a whole data set, not a folder of images: "
                                           f"did you mean {shapes / 'val'}?\n")
    for name in ("best.pt", "last.pt"):
        assert p1_eval.main([str(shapes / "val"), "--checkpoint", str(copied), "--device", "cpu"]) == 2
        assert capsys.readouterr().err == f"error: {copied} is not a file: name {copied / name}\n"
        (copied / name).unlink()
