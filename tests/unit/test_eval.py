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
             "expect": None, "tolerance": 0.005, "top": None}
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


def test_an_evaluation_in_a_run_folder_gives_way_to_one_of_best_pt_on_as_many_labelled_images(
        checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "config.json").write_text("{}")
    (run / "last.pt").write_bytes(b"other weights")

    def evaluate(*labels, of="best.pt", predicted=0):
        logits = torch.zeros(len(labels), 3)
        logits[:, predicted] = 1
        names = [f"{i}.jpg" for i in range(len(labels))]
        p1_eval.save(arguments(tmp_path, checkpoint=run / of), names, labels, logits, checkpoint)
        files = [run / name for name in ("eval.json", "eval.npz", "pred.csv")]
        return [path.read_bytes() for path in files if path.exists()], capsys.readouterr().err

    assert evaluate("3", "12", of="last.pt") == ([], "") == evaluate(None, None)
    first, said = evaluate("3", "12", None)
    assert len(first) == 3 and said == ""
    kept = f"note: {run / 'eval.json'} of 2 labelled images is kept: this evaluation "
    assert evaluate("3", None, None, None) == (first, f"{kept}has 1\n")
    assert evaluate(None) == (first, f"{kept}has 0\n")
    assert evaluate("3", "12", "x", of="last.pt") == (first, f"{kept}is of last.pt\n")
    second, said = evaluate("3", "12", predicted=1)
    assert said == f"note: {run / 'eval.json'} of 2 labelled images is replaced: this evaluation has 2\n"
    assert not set(first) & set(second)
    (run / "eval.json").write_text("[")
    assert evaluate("3")[1] == "" and json.loads((run / "eval.json").read_text())["labelled"] == 1


def test_unlabelled_images_get_their_name_and_probability(checkpoint, tmp_path, capsys):
    names, labels = ["12_1.jpg", "my cat.jpg", "\udcff\n.jpg"], ["12", None, None]
    logits = torch.tensor([[0, 2, 1], [3, 0, 0], [0, 0, 1]]).float()
    args = arguments(tmp_path, json=tmp_path / "result.json")
    result = p1_eval.save(args, names, labels, logits, checkpoint)
    assert result["unlabelled"] == {
        names[1]: {"label": "3", "name": "three", "probability": pytest.approx(np.e**3 / (np.e**3 + 2))},
        names[2]: {"label": "x", "name": "x", "probability": pytest.approx(np.e / (np.e + 2))}}
    assert json.loads(args.json.read_text(encoding="utf-8")) == result
    result["unlabelled"]["new\nline.jpg"] = result["unlabelled"].pop(names[2])
    assert p1_eval.report(result, args) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "my cat.jpg: three, probability 0.91" and second == "new\\nline.jpg: x, probability 0.58"
    assert third.startswith("accuracy 1.0000 (1 of 1 labelled images")
    assert "unlabelled" not in p1_eval.save(args, names[:1], labels[:1], logits[:1], checkpoint)
    assert "most_probable" not in result


@pytest.mark.parametrize("top", [2, 5])
def test_the_most_probable_classes_of_every_image_on_request(checkpoint, tmp_path, top):
    logits = torch.tensor([[0, 2, 1], [3, 0, 1]]).float()
    args = arguments(tmp_path, json=tmp_path / "result.json", top=top)
    found = p1_eval.save(args, ["a.jpg", "12_1.jpg"], [None, "12"], logits, checkpoint)["most_probable"]
    expected = [["12", "x", "3"], ["3", "x", "12"]]
    assert [[each["label"] for each in found[name]] for name in found] == [row[:top] for row in expected]
    assert [each["name"] for each in found["12_1.jpg"]] == ["three", "x", "twelve"][:top]
    assert found["a.jpg"][0]["probability"] == pytest.approx(np.e**2 / (1 + np.e + np.e**2))


def test_the_folder_around_val_is_not_taken_for_images(tmp_path):
    for name in ("val", "train"):
        (tmp_path / name).mkdir()
        p1_eval.refuse_data_set(tmp_path, ["0", "1"])  # one of them alone may hold photos
        (tmp_path / name).rmdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(BadInput, match=f"did you mean {tmp_path / 'val'}.$"):
        p1_eval.refuse_data_set(tmp_path, ["0", "1"])
    p1_eval.refuse_data_set(tmp_path, ["train", "val"])
