import hashlib
import json
import unicodedata
from argparse import Namespace

import numpy as np
import pytest
import torch

import p1_eval
from common.errors import BadInput
from models.checkpoint import Checkpoint

LABELS = ["3", "12", "x"]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run" / "best.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return Checkpoint(path, None, "test_vit", LABELS, ["three", "twelve", "x"], {}, {})


def arguments(folder, **changes):
    names = {"images": folder / "val", "csv": None, "json": None, "checkpoint": folder / "run" / "best.pt",
             "expect": None, "tolerance": 0.005}
    return Namespace(**{**names, **changes})


def test_images_are_scored_whose_label_the_checkpoint_knows(checkpoint, tmp_path, capsys):
    names = ["12_1.jpg", "x/y.jpg", "9_1.jpg", "photo.jpg", "3_ß.png"]
    args = arguments(tmp_path)
    assert p1_eval.known_labels(names, checkpoint, args) == ["12", "x", None, None, "3"]
    assert capsys.readouterr().err == ("note: 2 of 5 images carry no label that the checkpoint knows: "
                                       "not scored\n")
    assert p1_eval.known_labels(["3_1.jpg"], checkpoint, args) == ["3"] and capsys.readouterr().err == ""
    assert p1_eval.known_labels(["a.jpg"], checkpoint, args) == [None]
    with pytest.raises(BadInput, match="^--expect 0.5: no label of .*val is one that the checkpoint knows"):
        p1_eval.known_labels(["a.jpg"], checkpoint, arguments(tmp_path, expect=0.5))


def test_the_folder_comes_first_and_either_form_of_unicode_is_known(checkpoint, tmp_path):
    decomposed = unicodedata.normalize("NFD", "Köter")
    for checkpoint.labels, typed in ((["3", "Köter"], decomposed), (["3", decomposed], "Köter")):
        names = ["3/12_1.jpg", f"{typed}_1.jpg", f"{typed}/3_1.jpg", "new/3_1.jpg"]
        known = checkpoint.labels[1]
        assert p1_eval.known_labels(names, checkpoint, arguments(tmp_path)) == ["3", known, known, None]


def test_the_score_counts_what_is_labelled(checkpoint):
    result = p1_eval.score(["3", "12", "x", "x"], ["3", "3", None, "x"], checkpoint)
    low, high = result.pop("ci95")
    assert 0 < low < 2 / 3 < high < 1
    assert result == {
        "accuracy": 2 / 3, "correct": 2, "labelled": 3, "images": 4,
        "checkpoint_sha256": hashlib.sha256(b"weights").hexdigest(),
        "per_class": {"3": {"name": "three", "correct": 1, "labelled": 2},
                      "12": {"name": "twelve", "correct": 0, "labelled": 0},
                      "x": {"name": "x", "correct": 1, "labelled": 1}}}


def test_nothing_labelled_is_no_accuracy(checkpoint, tmp_path, capsys):
    result = p1_eval.score(["3"], [None], checkpoint)
    assert result["accuracy"] is None and result["ci95"] is None and result["labelled"] == 0
    assert p1_eval.report(result, arguments(tmp_path)) == 0
    assert capsys.readouterr().out == "1 images, none labelled\n"


@pytest.mark.parametrize("expect, tolerance, code", [
    (None, 0.005, 0), (0.78, 0.005, 0), (0.775, 0.005, 0), (0.785, 0.005, 0), (0.7749, 0.005, 1),
    (0.79, 0.005, 1), (0.7, 0.08, 0), (0.78, 0, 0), (0.781, 0, 1),
])
def test_the_expected_accuracy_decides_the_exit_code(expect, tolerance, code, tmp_path, capsys):
    result = {"accuracy": 0.78, "correct": 78, "labelled": 100, "images": 101, "ci95": [0.69, 0.85]}
    assert p1_eval.report(result, arguments(tmp_path, expect=expect, tolerance=tolerance)) == code
    printed = capsys.readouterr().out
    assert "accuracy 0.7800 (78 of 100 labelled images, 95 % interval 0.690 to 0.850)" in printed
    assert ("not as expected" in printed) == (code == 1)


def test_a_run_gets_what_a_report_reads_and_a_foreign_folder_nothing(checkpoint, tmp_path):
    names, labels = ["12_1.jpg", "photo.jpg"], ["12", None]
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    result = p1_eval.save(arguments(tmp_path), names, labels, logits, checkpoint)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "best.pt"]

    run = tmp_path / "run"
    (run / "config.json").write_text("{}")
    args = arguments(tmp_path, csv=tmp_path / "new" / "pred.csv", json=tmp_path / "new" / "result.json")
    assert p1_eval.save(args, names, labels, logits, checkpoint) == result
    assert args.csv.read_text() == "filename,label\n12_1.jpg,12\nphoto.jpg,3\n"
    assert json.loads(args.json.read_text()) == result
    assert (run / "eval.json").read_bytes() == args.json.read_bytes()
    assert (run / "pred.csv").read_bytes() == args.csv.read_bytes()
    with np.load(run / "eval.npz") as arrays:
        assert arrays["names"].tolist() == names and arrays["targets"].tolist() == [1, -1]
        assert arrays["labels"].tolist() == LABELS
        assert arrays["class_names"].tolist() == checkpoint.class_names
        assert arrays["folder"] == str((tmp_path / "val").resolve())
        expected = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
        assert np.allclose(arrays["probabilities"], expected) and arrays["probabilities"].dtype == np.float32
