import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import p2_eval
import p2_train
from datasets import scenes
from engine.state import TrainingState
from interpret import grounding
from models import catr, decoding
from models.tokenizer import Tokenizer
from tests.helpers.training import metrics, same, weights

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--device", "cpu", "--workers", "0", "--batch-size", "8"]


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


def test_it_survives_kills():
    done = subprocess.run([sys.executable, "-m", "tests.helpers.kill_training", "--kills", "3", "--captioner"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "0 differences" in done.stdout, done.stdout + done.stderr


def test_checkpoints_are_trained_further(captioner, data, tmp_path, monkeypatch):
    assert train(data, tmp_path / "further", "--epochs", 1, "--checkpoint", captioner / "best.pt") == 0
    assert float(metrics(tmp_path / "further")[0]["train_loss"]) < float(metrics(captioner)[1]["train_loss"])

    # CATR's format, at a size that a test can train: its config is the default one
    small = dataclasses.replace(catr.small_config(len(scenes.VOCABULARY)), dropout=0.1)
    whole = catr.Config
    monkeypatch.setattr(catr, "Config", lambda *args, **fields: whole(*args, **fields) if args or fields else small)
    torch.save({"model": weights(captioner, "best.pt"), "epoch": 9}, tmp_path / "catr.pth")
    vocab = data / "vocab.txt"
    assert train(data, tmp_path / "catr", "--epochs", 1, "--checkpoint", tmp_path / "catr.pth", "--vocab", vocab) == 0
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
    assert "--data is" in capsys.readouterr().err


# p2_eval.py --------------------------------------------------------------------------------------------------------


def test_the_score_of_true_and_of_wrong_captions(captioner, data, tmp_path, capsys, monkeypatch):
    true = json.loads((data / "annotations" / "captions_val.json").read_text())["annotations"]
    true = [annotation["caption"] for annotation in sorted(true, key=lambda a: f"{a['image_id']}.jpg")]
    wrong = [f"two{caption[caption.index(' '):]}" if i else caption for i, caption in enumerate(true)]
    wrong[-1] += " next"
    tokenizer = Tokenizer(scenes.VOCABULARY)

    def score(captions):
        left = list(captions)
        monkeypatch.setattr(decoding, "search", lambda model, memory, *rest: [
            [*tokenizer.encode(left.pop(0)), tokenizer.end] for _ in memory.grids])
        result = tmp_path / "result.json"
        assert p2_eval.main(["--data", str(data), "--checkpoint", str(captioner / "best.pt"), "--json", str(result),
                             "--batch-size", "4", "--device", "cpu"]) == 0
        assert f"exact {sum(a == b for a, b in zip(captions, true)) / 6:.1%}" in capsys.readouterr().out
        return json.loads(result.read_text())

    content = score(true)
    assert content["exact"] == 1 and content["bleu4"] == pytest.approx(100) and list(content["captions"].values()) == true
    rows = content["pointing"]
    assert rows["colour"]["tokens"] == rows["shape"]["tokens"] == 12 and rows["end"]["tokens"] == 6
    assert rows["article"]["tokens"] == rows.get("article of the first", {"tokens": 0})["tokens"] + rows.get(
        "article of the second", {"tokens": 0})["tokens"]
    content = score(wrong)
    assert 1 / 6 <= content["exact"] < 1 and content["bleu4"] == pytest.approx(bleu4(wrong, true), abs=0.01)


def bleu4(found, references):
    """Papineni et al. 2002, over a corpus with one reference each: 100 * brevity * geometric mean of the precisions."""
    precisions = []
    for n in (1, 2, 3, 4):
        matched = total = 0
        for one, other in zip(found, references):
            grams = [[tuple(words[i:i + n]) for i in range(len(words) - n + 1)] for words in (one.split(), other.split())]
            matched += sum(min(grams[0].count(gram), grams[1].count(gram)) for gram in set(grams[0]))
            total += len(grams[0])
        precisions.append(matched / total)
    lengths = [sum(len(text.split()) for text in texts) for texts in (found, references)]
    brevity = min(1, math.exp(1 - lengths[1] / lengths[0]))
    return 100 * brevity * math.exp(sum(map(math.log, precisions)) / 4)


def test_pointing_is_what_the_masks_say():
    inside, other = torch.zeros(4, 4), torch.zeros(4, 4)
    inside[0, 0], inside[0, 1], other[3, 3] = 1, 0.5, 1
    attention = torch.zeros(4, 4)
    attention[0, 0], attention[1, 2], attention[3, 3] = 0.3, 0.5, 0.2
    found = grounding.point(attention, inside, other)
    assert found.hit == 1, "beside a cell that the object touches"
    assert np.allclose(dataclasses.astuple(found), [1, 6 / 16, 0.3, 1.5 / 16, 0.2])
    assert grounding.point(attention.flip(1), inside, other).hit == 1 and grounding.point(attention, other, inside).hit == 0
    assert np.allclose(dataclasses.astuple(grounding.mean([found, grounding.Pointing(0, 0, 0, 0, 0)])),
                       np.array(dataclasses.astuple(found)) / 2)


@pytest.fixture
def odd(data, captioner, tmp_path):
    """A copy of the scenes that a test may spoil, and how p2_eval.py ends on it."""
    folder = shutil.copytree(data, tmp_path / "odd")

    def evaluate(checkpoint=captioner / "best.pt"):
        return p2_eval.main(["--data", str(folder), "--checkpoint", str(checkpoint), "--device", "cpu"])

    return folder, evaluate


def write_caption(folder, caption, split="val"):
    file = folder / "annotations" / f"captions_{split}.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] = caption
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("caption", ["a red star " * 40, "a red \ud83d star", "an unknown elephant"])
def test_captions_that_are_long_or_strange_are_scored_all_the_same(odd, capsys, caption):
    folder, evaluate = odd
    write_caption(folder, caption)
    assert evaluate() == 0 and "6 captions" in capsys.readouterr().out


def test_unknown_words_are_not_taken_for_one_another(odd, capsys, monkeypatch):
    folder, evaluate = odd
    write_caption(folder, "a zebra")
    monkeypatch.setattr(decoding, "search", lambda model, memory, *rest: [[4, 1, 3]] * len(memory.grids))  # a [UNK]
    assert evaluate() == 0 and "exact 0.0%" in capsys.readouterr().out


@pytest.mark.parametrize("spoil, expected", [
    (lambda mask: Image.new("L", (9, 9)).save(mask), "masks must fit"),
    (lambda mask: Image.new("RGB", (9, 9)).save(mask), "it wants one channel"),
    (lambda mask: mask.write_bytes(mask.read_bytes()[:40]), "0.png is not a whole image"),
    (lambda mask: mask.unlink(), "0.png does not exist"),
])
def test_a_bad_mask_is_named(odd, capsys, spoil, expected):
    folder, evaluate = odd
    spoil(folder / "masks" / "val" / "0.png")
    assert evaluate() == 2 and expected in capsys.readouterr().err


@pytest.mark.parametrize("change, expected", [
    (lambda saved: saved["state_dict"]["mlp.layers.2.bias"].fill_(math.nan), "mlp.layers.2.bias holds values that are not finite"),
    (lambda saved: saved.update(vocabulary=5), "holds no list of tokens"),
    (lambda saved: saved.update(vocabulary=saved["vocabulary"][:20]), "describes no captioner that this version knows"),
    (lambda saved: saved["captioner"].update(heads=3), "describes no captioner that this version knows"),
    (lambda saved: saved["captioner"].update(width="x"), "describes no captioner that this version knows"),
    (lambda saved: saved["captioner"].update(longer_side=0), "describes no captioner that this version knows"),
    (lambda saved: saved["captioner"].update(colour=1), "describes no captioner that this version knows"),
    (lambda saved: saved.update(captioner=3), "describes no captioner that this version knows"),
    (lambda saved: saved.update(state_dict=[1]), "holds no state dict"),
    (lambda saved: saved["state_dict"].update({"mlp.layers.2.bias": 3}), "mlp.layers.2.bias is no plain tensor"),
])
def test_a_spoilt_checkpoint_is_refused(odd, captioner, tmp_path, capsys, change, expected):
    saved = torch.load(captioner / "best.pt", weights_only=True)
    change(saved)
    torch.save(saved, tmp_path / "spoilt.pt")
    assert odd[1](tmp_path / "spoilt.pt") == 2 and expected in capsys.readouterr().err


def test_half_precision_weights_open_in_full(captioner, tmp_path):
    saved = torch.load(captioner / "best.pt", weights_only=True)
    saved["state_dict"] = {key: value.half() for key, value in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "half.pt")
    assert {p.dtype for p in catr.open_captioner(tmp_path / "half.pt")[0].parameters()} == {torch.float32}


def test_a_caption_longer_than_the_positions_is_cut_in_training(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "long")
    write_caption(folder, "a red star " * 40, "train")
    assert train(folder, tmp_path / "run", "--epochs", 1, "--holdout", 0) == 0
