"""`--head-init probe` of p1_train.py; the probe itself is tested in tests/unit/test_probe.py."""

import json

import numpy as np
import pytest
import torch

import p1_train
from datasets import decode, images, transforms
from models import vit
from models.checkpoint import open_checkpoint
from models.probe import Features, fit_probe, read_head, set_head
from tests.helpers import forked
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.training import TRAIN, same, train, weights

SETTINGS = ["--lr", 0, "--optimizer", "adam", "--holdout", 0, "--head-init", "probe"]
PRETRAINED = [argument for argument in TRAIN if argument != "--scratch"]


def train_from(file, data, output, *arguments):
    return p1_train.main(["--data", str(data), "--output", str(output), *PRETRAINED, "--weights", str(file),
                          *map(str, [*SETTINGS, *arguments])])


@torch.no_grad()
def features_of(model, folder):
    transform = transforms.evaluation_transform(vit.preprocessing(model))
    return Features(model.eval())(torch.stack([transform(decode.load_image(folder.root / name))
                                               for name in folder.names]))


@pytest.fixture(scope="module")
def pretrained(shapes, tmp_path_factory):
    """A weights file whose head was fitted to three classes, one of them two of `shapes`; and the images."""
    path, three = tmp_path_factory.mktemp("pretrained") / "pretrained.pt", ["a", "b", "c"]
    write_checkpoint(path, class_names=three)
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    opened = open_checkpoint(path)
    targets = [min(target, 2) for target in folder.targets]
    set_head(opened.model, fit_probe(features_of(opened.model, folder), targets))
    return write_checkpoint(path, class_names=three, state_dict=opened.model.state_dict()), folder


def test_training_begins_at_the_probe_with_the_pretrained_head_as_prior(pretrained, shapes, tmp_path, capsys):
    """With a rate of zero the head stays what the probe made it, and the rest what it was."""
    file, folder = pretrained
    output = tmp_path / "run"
    assert train_from(file, shapes, output, "--epochs", 1) == 0
    printed = capsys.readouterr()
    assert "head fitted to the frozen features: C " in printed.out and printed.err == ""
    model = open_checkpoint(file).model
    expected = fit_probe(features_of(model, folder), folder.targets, read_head(model))
    head = weights(output)["head.weight"].numpy()
    assert np.abs(head - expected.weight).max() < 1e-3 * np.abs(expected.weight).max()
    before, after = model.state_dict(), weights(output)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"head.weight", "head.bias"}

    config = json.loads((output / "config.json").read_text())
    assert config["model"] == vit.describe(vit.build("test_vit", 4))
    assert config["probe"].keys() == {"C", "trust", "accuracy", "seconds"}
    assert (config["probe"]["C"], config["probe"]["trust"]) == (expected.C, expected.prior_weight)
    assert expected.prior_weight > 0
    assert train_from(file, shapes, output, "--epochs", 2, "--resume") == 0
    assert json.loads((output / "config.json").read_text())["probe"] == config["probe"], "a resume keeps it"


def test_without_a_pretrained_head_there_is_no_prior(pretrained, shapes, tmp_path, capsys):
    state = torch.load(pretrained[0], weights_only=True)["state_dict"]
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    torch.save(headless, tmp_path / "headless.pt")
    assert train_from(tmp_path / "headless.pt", shapes, tmp_path / "run", "--epochs", 1) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["probe"]["trust"] == 0
    assert capsys.readouterr().err == "", "that the head is replaced goes without saying"


def test_the_probe_of_two_ranks_is_that_of_one(shapes, tmp_path):
    """Their features differ by rounding at most. From random weights, whose head is no prior."""
    settings = [*map(str, [*SETTINGS, "--epochs", 1])]
    arguments = ["--data", shapes, "--output", tmp_path / "two", *TRAIN, *settings, "--batch-size", "4"]
    pair = [forked.fresh(p1_train.main, list(map(str, arguments)), log=tmp_path / "log", **environment)
            for environment in forked.ranks(2)]
    for process in pair:
        process.join(timeout=100)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert train(shapes, tmp_path / "one", *settings) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert (one["head.weight"] - two["head.weight"]).abs().max() < 1e-3 * one["head.weight"].abs().max()
    for state in (one, two):
        del state["head.weight"], state["head.bias"]
    assert same(one, two)
    record = json.loads((tmp_path / "one" / "config.json").read_text())["probe"]
    assert record["trust"] == 0
