import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

import p1_train
from datasets import decode, images, transforms
from models import vit
from models.checkpoint import open_checkpoint
from models.probe import STRENGTHS, TRUSTS, Features, fit_probe, read_head, set_head
from tests.helpers.training import TRAIN, same, train, weights


@pytest.fixture(scope="module", params=["2 classes", "5 classes", "5 classes and a pretrained head"])
def problem(request):
    """Features, targets, and a head that was trained on three times as many classes, some of which are like these."""
    rng = np.random.default_rng(5)
    classes = int(request.param[0])
    y = np.repeat(np.arange(classes), 12)
    centers = 2 * rng.normal(size=(classes, 8))
    x = (7 * (centers[y] + 1.5 * rng.normal(size=(len(y), 8))) + 3).astype(np.float32)
    means = np.concatenate([7 * centers + 3, 20 * rng.normal(size=(2 * classes, 8))])
    discriminants = means / 10.5 ** 2, -np.square(means).sum(1) / 2 / 10.5 ** 2
    return x, y, discriminants if "head" in request.param else None


def prior_of(x, y, head):
    """The docstring's W0, in plain loops."""
    prior = np.zeros((y.max() + 1, x.shape[1]))
    if head:
        for label, row in enumerate(prior):
            of_label = x[y == label]
            for image in of_label:
                logits = [image @ one + bias for one, bias in zip(*head)]
                total = sum(np.exp(logit - max(logits)) for logit in logits)
                for one, logit in zip(head[0], logits):
                    row += np.exp(logit - max(logits)) / total * one / len(of_label)
    return torch.from_numpy(prior)


def objective(weight, bias, x, y, C, center=0.0):
    """The docstring's, with torch: ||s (W - alpha W0)||^2 / 2 + C * sum of cross-entropies."""
    x, y = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y)
    penalty = (x.std(correction=0) * (weight - center)).square().sum() / 2
    return penalty + C * torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")


def test_the_probe_is_the_minimum_that_an_independent_regression_finds(problem):
    """Newton's method on the plain objective, in float64, from zero."""
    x, y, head = problem
    probe = fit_probe(x, y, head)
    classes, width, center = y.max() + 1, x.shape[1], probe.trust * prior_of(x.astype(float), y, head)

    def flat(theta):
        return objective(theta[:classes * width].reshape(classes, width), theta[classes * width:], x, y, probe.C, center)

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


def test_without_a_pretrained_head_it_is_scikit_learn_s_regression(problem):
    x, y, _ = problem
    probe = fit_probe(x, y)
    z = x / x.astype(float).std()
    # of two classes, it penalises the difference of their weights, which is twice what the two weights themselves cost
    fitted = LogisticRegression(C=probe.C * (1 + (y.max() == 1)), tol=1e-8, max_iter=10000).fit(z, y)
    assert np.abs(fitted.predict_proba(z) - softmax(x @ probe.weight.T + probe.bias, axis=1)).max() < 1e-4
    assert probe.trust == 0


def test_strength_and_trust_are_those_with_the_smallest_loss_on_folds_left_out(problem, monkeypatch):
    """Found again by fitting with torch alone: LBFGS on the objective of each fold's training part."""
    strengths = (0.1, 1.0, 10.0)
    monkeypatch.setattr("models.probe.STRENGTHS", strengths)
    x, y, head = problem
    x = x.astype(float)
    losses, hits = {}, {}
    for alpha, C in itertools.product(TRUSTS if head else (0.0,), strengths):
        loss = hit = 0
        for fit, left_out in StratifiedKFold(5, shuffle=True, random_state=3).split(x, y):
            # features scaled once, over all images
            z, center = torch.from_numpy((x - x.mean(0)) / x.std()), alpha * x.std() * prior_of(x[fit], y[fit], head)
            weight = torch.zeros(y.max() + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(y.max() + 1, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

            def closure():
                optimizer.zero_grad()
                value = (weight - center).square().sum() / 2 + C * torch.nn.functional.cross_entropy(
                    z[fit] @ weight.T + bias, torch.from_numpy(y[fit]), reduction="sum")
                value.backward()
                return value

            optimizer.step(closure)
            logits = z[left_out] @ weight.T + bias
            loss += torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[left_out]), reduction="sum").item()
            hit += (logits.argmax(1).numpy() == y[left_out]).sum()
        losses[C, alpha], hits[C, alpha] = loss, hit
    probe = fit_probe(x, y, head, seed=3)
    best = min(losses, key=losses.get)
    assert (probe.C, probe.trust) == best and probe.accuracy == pytest.approx(hits[best] / len(y))
    assert not head or probe.trust > 0  # else it would not be known to work


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
        weight, bias = read_head(model)
        assert np.allclose(weight, probe.weight, atol=1e-5) and np.allclose(bias, probe.bias, atol=1e-5)
    model.reset_classifier(0)
    assert read_head(model) is None


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
    fit = folder.keep(images.stratified_holdout(folder.targets, 0.1, seed=0)[0])
    checkpoint = open_checkpoint(tmp_path / "random" / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    with torch.no_grad():
        features = Features(checkpoint.model)(torch.stack([transform(decode.load_image(fit.root / name)) for name in fit.names]))
    probe = fit_probe(features, fit.targets)
    assert np.abs(one["head.weight"].numpy() - probe.weight).max() < 1e-3 * np.abs(probe.weight).max()


def test_training_begins_at_a_probe_that_knows_the_pretrained_head(shapes, tmp_path, capsys):
    """Of two heads, the one that was trained for these classes is trusted; where the file has none, there is nothing to trust."""
    assert train(shapes, tmp_path / "trained", "--epochs", 4, "--optimizer", "adam", "--lr", 1e-3, "--holdout", 0) == 0
    arguments = ["--epochs", 1, "--lr", 0, "--optimizer", "adam", "--holdout", 0, "--head-init", "probe"]
    start = [argument for argument in TRAIN if argument != "--scratch"]
    told = {}
    state = weights(tmp_path / "trained", "best.pt")
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, tmp_path / "headless.pt")
    for name, file in (("headed", tmp_path / "trained" / "best.pt"), ("headless", tmp_path / "headless.pt")):
        assert p1_train.main(["--data", str(shapes), "--output", str(tmp_path / name), *start, "--weights", str(file),
                              *map(str, arguments)]) == 0
        told[name] = json.loads((tmp_path / name / "config.json").read_text())["probe"]
        assert capsys.readouterr().err == ""
    assert told["headed"]["trust"] > 0 and told["headless"]["trust"] == 0

    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    checkpoint = open_checkpoint(tmp_path / "trained" / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    with torch.no_grad():
        features = Features(checkpoint.model)(torch.stack([transform(decode.load_image(folder.root / name))
                                                           for name in folder.names]))
    probe = fit_probe(features, folder.targets, read_head(checkpoint.model))
    assert np.abs(weights(tmp_path / "headed")["head.weight"].numpy() - probe.weight).max() < 1e-3 * np.abs(probe.weight).max()


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
