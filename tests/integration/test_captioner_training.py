import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import p2_eval
import p2_train
from datasets import scenes
from engine.state import TrainingState
from models import catr
from tests.helpers import forked, kill_training
from tests.helpers.training import metrics, same, weights

FLAGS = ["--device", "cpu", "--workers", "0", "--batch-size", "8", "--precision", "fp32"]


def train(data, output, *arguments):
    return p2_train.main(["--data", str(data), "--output", str(output), *FLAGS, *map(str, arguments)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set", 24, 6, seed=5)


@pytest.fixture(scope="module")
def captioner(data, tmp_path_factory):
    """The output folder of a short run."""
    output = tmp_path_factory.mktemp("captioner") / "run"
    assert train(data, output, "--epochs", 2, "--holdout", 0.2) == 0
    return output


def test_training_leaves_a_captioner_that_carries_its_vocabulary(captioner, data):
    model, tokenizer = catr.open_captioner(captioner / "best.pt")
    assert tokenizer.vocabulary == scenes.VOCABULARY and not model.training
    assert model.config == catr.small_config(len(scenes.VOCABULARY))
    assert {path.name for path in captioner.iterdir()} == {
        "last.pt", "previous.pt", "best.pt", "metrics.csv", "config.json", "curves.png"}
    first, second = (float(row["train_loss"]) for row in metrics(captioner))
    assert second < first < math.log(len(scenes.VOCABULARY)) * 1.2
    assert all(0 <= float(row["holdout_accuracy"]) <= 1 for row in metrics(captioner))
    assert json.loads((captioner / "config.json").read_text())["settings"]["optimizer"] == "adamw"


@pytest.mark.slow
@pytest.mark.real_data
def test_a_small_captioner_learns_real_photos_with_the_real_vocabulary(real_data, tmp_path, capsys):
    coco, vocabulary = real_data / "coco", real_data / "bert-base-uncased" / "vocab.txt"
    assert train(coco, tmp_path / "run", "--vocab", vocabulary, "--epochs", 1, "--lr", "3e-3") == 0
    loss, = (float(row["train_loss"]) for row in metrics(tmp_path / "run"))
    assert loss < math.log(30_522) - 1, "the words that all captions share"
    capsys.readouterr()
    assert p2_eval.main(["--data", str(coco), "--checkpoint", str(tmp_path / "run" / "best.pt"), "--device",
                         "cpu", "--json", str(tmp_path / "result.json"), "--max-tokens", "6"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"79 captions: exact 0.0% (0), BLEU-4 {result['bleu4']:.1f}, CIDEr {result['cider']:.2f}" \
        in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--sam", "--ema", "0.8", "--accumulate", "2"]])
def test_a_stopped_run_resumes_to_the_same_bits(data, tmp_path, monkeypatch, flags):
    settings = ["--epochs", 2, "--batch-size", 4, "--holdout", 0.2, *flags]
    assert train(data, tmp_path / "straight", *settings) == 0
    count = TrainingState.count_step

    def counting(self, *args):
        count(self, *args)
        if (self.epoch, self.step) == (0, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "count_step", counting)
        assert train(data, tmp_path / "run", *settings) == 143
    assert train(data, tmp_path / "run", *settings, "--resume") == 0
    assert same(weights(tmp_path / "run"), weights(tmp_path / "straight"))
    assert same(weights(tmp_path / "run", "best.pt"), weights(tmp_path / "straight", "best.pt"))


def test_it_survives_a_kill(tmp_path):
    """The helper's docstring has the command for 25."""
    command = ["--kills", "1", "--epochs", "2", "--captioner"]
    process = forked.fresh(kill_training.main, command, log=tmp_path / "log")
    process.join(timeout=300)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and ": 0 differences" in said, said


def test_checkpoints_are_trained_further(captioner, data, tmp_path, monkeypatch):
    assert train(data, tmp_path / "further", "--epochs", 1, "--checkpoint", captioner / "best.pt") == 0
    assert float(metrics(tmp_path / "further")[0]["train_loss"]) < float(metrics(captioner)[1]["train_loss"])

    # CATR's format, at a size that a test can train: its config is the default one
    small = dataclasses.replace(catr.small_config(len(scenes.VOCABULARY)), dropout=0.1)
    whole = catr.Config
    monkeypatch.setattr(catr, "Config", lambda *args, **fields:
                        whole(*args, **fields) if args or fields else small)
    torch.save({"model": weights(captioner, "best.pt"), "epoch": 9}, tmp_path / "catr.pth")
    vocab = data / "vocab.txt"
    flags = "--epochs", 1, "--checkpoint", tmp_path / "catr.pth", "--vocab", vocab
    assert train(data, tmp_path / "catr", *flags) == 0
    assert catr.open_captioner(tmp_path / "catr" / "best.pt")[0].config == small


def test_data_that_changed_is_not_resumed(captioner, tmp_path, capsys):
    other = scenes.write_scenes(tmp_path / "other", 24, 0, seed=6)
    shutil.copytree(captioner, tmp_path / "run")
    config = json.loads((captioner / "config.json").read_text())["settings"]
    folder = Path(config["data"])
    assert train(folder, tmp_path / "run", "--epochs", 2, "--holdout", 0.2, "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    (tmp_path / "moved").mkdir()
    assert train(other, tmp_path / "run", "--epochs", 3, "--holdout", 0.2, "--resume") == 2
    assert "other/train holds other images than when the run began" in capsys.readouterr().err
    moved = shutil.copytree(folder, tmp_path / "moved" / "data")
    file = moved / "annotations" / "captions_train.json"
    file.write_text(file.read_text().replace("red", "blue"))
    assert train(moved, tmp_path / "run", "--epochs", 3, "--holdout", 0.2, "--resume") == 2
    assert "holds other images, or captions, than when the run began" in capsys.readouterr().err


def test_a_run_goes_on_without_a_photo_that_has_become_bad(data, captioner, tmp_path, capsys):
    """Missing, too, as in many a copy of COCO."""
    folder, output = shutil.copytree(data, tmp_path / "data"), shutil.copytree(captioner, tmp_path / "run")
    flags = "--epochs", 3, "--holdout", 0.2, "--resume"
    (folder / "train" / "5.jpg").unlink()
    (folder / "train" / "7.jpg").write_bytes(b"x")
    assert train(folder, tmp_path / "new", *flags[:-1]) == 2
    assert "2 files of 24" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert train(folder, output, *flags) == 2
    assert "fix them, or pass --resume --skip-bad to go on without" in capsys.readouterr().err
    assert train(folder, output, *flags, "--skip-bad") == 0
    photos = torch.load(output / "last.pt", weights_only=True)["resume"]["photos"]
    assert set(photos["left_out"]) == {"5.jpg", "7.jpg"} and len(photos["sizes"]) == 24


def test_captions_that_the_vocabulary_does_not_cover_are_not_trained_on(data, tmp_path, capsys):
    vocabulary = (data / "vocab.txt").read_text().splitlines()
    few = [token for token in vocabulary if token.startswith("[") or token == "a"]
    (tmp_path / "few.txt").write_text("\n".join(few))
    assert train(data, tmp_path / "run", "--epochs", 1, "--vocab", tmp_path / "few.txt") == 2
    assert "are not in the vocabulary, such as" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_caption_longer_than_the_positions_is_cut_in_training(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "long")
    file = folder / "annotations" / "captions_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] = "a red star " * 40
    file.write_text(json.dumps(content))
    assert train(folder, tmp_path / "run", "--epochs", 1, "--holdout", 0) == 0
