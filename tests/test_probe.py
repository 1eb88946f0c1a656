import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.model_selection import StratifiedKFold
from training import same, train, weights

from datasets import images
from models import vit
from models.probe import STRENGTHS, Features, fit_probe, set_head


@pytest.fixture(scope="module", params=[2, 5], ids=["2 classes", "5 classes"])
def problem(request):
    rng = np.random.default_rng(request.param)
    y = np.repeat(np.arange(request.param), 12)
    centers = 2 * rng.normal(size=(request.param, 8))
    return (7 * (centers[y] + 1.5 * rng.normal(size=(len(y), 8))) + 3).astype(np.float32), y


def objective(weight, bias, x, y, C):
    """The docstring's, with torch: ||s W||^2 / 2 + C * sum of cross-entropies."""
    x, y = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y)
    penalty = (x.std(correction=0) * weight).square().sum() / 2
    return penalty + C * torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")


def test_the_probe_is_the_minimum_that_an_independent_regression_finds(problem):
    """Newton's method on the plain objective, in float64, from zero."""
    x, y = problem
    probe = fit_probe(x, y)
    classes, width = y.max() + 1, x.shape[1]

    def flat(theta):
        return objective(theta[:classes * width].reshape(classes, width), theta[classes * width:], x, y, probe.C)

    theta = torch.zeros(classes * (width + 1), dtype=torch.float64)
    for _ in range(50):
        gradient = torch.autograd.functional.jacobian(flat, theta)
        hessian = torch.autograd.functional.hessian(flat, theta)
        step = torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]  # the bias has a free direction
        length = next(length for length in 0.5 ** torch.arange(30.0) if flat(theta - length * step) <= flat(theta))
        theta = theta - length * step
    weight = theta[:classes * width].reshape(classes, width).numpy()
    bias = theta[classes * width:].numpy()
    assert torch.autograd.functional.jacobian(flat, theta).abs().max() < 1e-8
    assert np.abs(probe.weight - weight).max() < 1e-3 * np.abs(weight).max()
    assert np.abs((probe.bias - probe.bias.mean()) - (bias - bias.mean())).max() < 1e-3 * np.abs(bias).max()


def test_the_strength_is_the_one_with_the_smallest_loss_on_folds_left_out(problem):
    """Found again by fitting with torch alone: LBFGS on the objective of each fold's training part."""
    x, y = problem
    x = (x - x.mean(0)) / x.std()
    losses, hits = [], []
    for C in STRENGTHS:
        loss = hit = 0
        for fit, left_out in StratifiedKFold(5, shuffle=True, random_state=3).split(x, y):
            weight = torch.zeros(y.max() + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(y.max() + 1, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

            def closure():
                optimizer.zero_grad()
                # the penalty is of features scaled once, over all images
                value = weight.square().sum() / 2 + C * torch.nn.functional.cross_entropy(
                    torch.from_numpy(x[fit]).double() @ weight.T + bias, torch.from_numpy(y[fit]), reduction="sum")
                value.backward()
                return value

            optimizer.step(closure)
            logits = torch.from_numpy(x[left_out]).double() @ weight.T + bias
            loss += torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[left_out]), reduction="sum").item()
            hit += (logits.argmax(1).numpy() == y[left_out]).sum()
        losses.append(loss), hits.append(hit)
    probe = fit_probe(x, y, seed=3)
    assert probe.C == STRENGTHS[np.argmin(losses)]
    assert probe.accuracy == pytest.approx(hits[np.argmin(losses)] / len(y))


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1), (2, 1, 1), (1, 4, 9), (3, 3)])
def test_classes_of_a_few_images_or_one(counts, recwarn):
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.eye(len(counts))[y] + 0.01 * np.random.default_rng(0).normal(size=(len(y), len(counts)))
    probe = fit_probe(x, y)
    assert ((x @ probe.weight.T + probe.bias).argmax(1) == y).all()
    assert (probe.accuracy is None) == (max(counts) == 1) and not recwarn.list


@pytest.mark.parametrize("arch", ["test_vit", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"])
def test_the_head_of_a_model_computes_what_the_probe_does(arch):
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=3).eval()
    images = torch.randn(7, 3, *model.default_cfg["input_size"][1:])
    with torch.no_grad():
        features = Features(model)(images).double().numpy()
        probe = fit_probe(features, np.array([0, 1, 2, 0, 1, 2, 2]))
        set_head(model, probe)
        assert np.abs(model(images).numpy() - (features @ probe.weight.T + probe.bias)).max() < 1e-4


def test_training_begins_at_the_probe(shapes, tmp_path, capsys):
    """With a rate of zero the head stays what the probe made it, and the rest what the seed made it."""
    settings = ["--epochs", 1, "--lr", 0, "--optimizer", "adam"]
    assert train(shapes, tmp_path / "probe", *settings, "--head-init", "probe") == 0
    assert "head fitted to the frozen features: C " in capsys.readouterr().out
    assert train(shapes, tmp_path / "random", *settings) == 0
    one, other = weights(tmp_path / "probe"), weights(tmp_path / "random")
    assert {key for key in one if not torch.equal(one[key], other[key])} == {"head.weight", "head.bias"}
    told = json.loads((tmp_path / "probe" / "config.json").read_text())
    assert told["probe"]["C"] in STRENGTHS and told["model"] == vit.describe(timm.create_model("test_vit", num_classes=4))

    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    fit = folder.keep(images.split_held_out(folder.targets, 0.1, seed=0)[0])
    checkpoint = vit.open_checkpoint(tmp_path / "random" / "best.pt")
    transform = images.evaluation_transform(checkpoint.preprocessing)
    with torch.no_grad():
        features = Features(checkpoint.model)(torch.stack([transform(images.load_image(fit.root / name)) for name in fit.names]))
    probe = fit_probe(features, fit.targets)
    assert np.abs(one["head.weight"].numpy() - probe.weight).max() < 1e-3 * np.abs(probe.weight).max()


def test_a_run_that_goes_on_keeps_what_it_was_told_of_its_probe(shapes, tmp_path):
    settings = ["--optimizer", "adam", "--head-init", "probe", "--holdout", 0]
    assert train(shapes, tmp_path / "run", *settings, "--epochs", 1) == 0
    before = json.loads((tmp_path / "run" / "config.json").read_text())["probe"]
    assert train(shapes, tmp_path / "run", *settings, "--epochs", 2, "--resume") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["probe"] == before


def test_the_probe_of_two_processes_is_that_of_one(shapes, tmp_path):
    """Their features differ by rounding at most."""
    settings = ["--data", str(shapes), "--arch", "test_vit", "--scratch", "--device", "cpu", "--workers", "0", "--epochs", "1",
                "--lr", "0", "--optimizer", "adam", "--head-init", "probe"]
    script = Path(__file__).parents[1] / "p1_train.py"
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *settings,
                    "--batch-size", "4", "--output", tmp_path / "two"], check=True, capture_output=True)
    assert train(shapes, tmp_path / "one", *settings[2:], "--batch-size", 8) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert (one["head.weight"] - two["head.weight"]).abs().max() < 1e-3 * one["head.weight"].abs().max()
    assert same({**one, "head.weight": 0 * one["head.weight"], "head.bias": 0 * one["head.bias"]},
                {**two, "head.weight": 0 * two["head.weight"], "head.bias": 0 * two["head.bias"]})
