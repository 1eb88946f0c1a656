import itertools
import warnings

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from models import probe as probing
from models.probe import (
    PRIOR_WEIGHTS,
    Features,
    fit_probe,
    read_head,
    set_head,
    start_from_probe,
    stratified_folds,
)

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module", params=["2 classes", "4 classes", "4 classes and a pretrained head"])
def problem(request):
    """Features, targets, and a head that was trained on three times as many classes, some of which are like
    these."""
    rng = np.random.default_rng(5)
    classes = int(request.param[0])
    y = np.repeat(np.arange(classes), 12)
    centers = 2 * rng.normal(size=(classes, 6))
    x = (7 * (centers[y] + 1.5 * rng.normal(size=(len(y), 6))) + 3).astype(np.float32)
    means = np.concatenate([7 * centers + 3, 20 * rng.normal(size=(2 * classes, 6))])
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
    classes, width, center = y.max() + 1, x.shape[1], probe.prior_weight * prior_of(x.astype(float), y, head)

    def flat(theta):
        return objective(theta[:classes * width].reshape(classes, width), theta[classes * width:], x, y,
                         probe.C, center)

    theta = torch.zeros(classes * (width + 1), dtype=torch.float64)
    while (gradient := torch.autograd.functional.jacobian(flat, theta)).abs().max() > 1e-8:
        hessian = torch.autograd.functional.hessian(flat, theta, vectorize=True)
        # least squares, since the bias has a free direction
        step = torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
        lengths = 0.5 ** torch.arange(30.0)
        theta = theta - next(length for length in lengths
                             if flat(theta - length * step) <= flat(theta)) * step
    weight = theta[:classes * width].reshape(classes, width).numpy()
    bias = theta[classes * width:].numpy()
    assert np.abs(probe.weight - weight).max() < 1e-3 * np.abs(weight).max()
    assert np.abs((probe.bias - probe.bias.mean()) - (bias - bias.mean())).max() < 1e-3 * np.abs(bias).max()


def test_without_a_pretrained_head_it_is_scikit_learn_s_regression(problem):
    x, y, _ = problem
    probe = fit_probe(x, y)
    z = x / x.astype(float).std()
    # of two classes, it penalises the difference of their weights: twice what the two weights themselves cost
    fitted = LogisticRegression(C=probe.C * (1 + (y.max() == 1)), tol=1e-8, max_iter=10000).fit(z, y)
    assert np.abs(fitted.predict_proba(z) - softmax(x @ probe.weight.T + probe.bias, axis=1)).max() < 1e-4
    assert probe.prior_weight == 0


def fit_by_torch(z, y, center, C):
    """(weight, bias) at the minimum of the objective, of features scaled before; by torch alone."""
    weight = torch.zeros(y.max() + 1, z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.max() + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = z @ weight.T + bias
        value = (weight - center).square().sum() / 2 + C * torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(y), reduction="sum")
        value.backward()
        return value

    optimizer.step(closure)
    return weight, bias


def test_C_and_the_prior_weight_are_those_with_the_smallest_loss_on_folds_left_out(problem, monkeypatch):
    """Searched for again by fitting to the training part of each fold with torch alone."""
    grid = (0.03, 0.3)
    monkeypatch.setattr("models.probe.C_GRID", grid)
    monkeypatch.setattr("models.probe.FOLDS", 3)
    x, y, head = problem
    x = x.astype(float)
    z = torch.from_numpy((x - x.mean(0)) / x.std())  # scaled once, over all images
    losses, hits = {}, {}
    for alpha, C in itertools.product(PRIOR_WEIGHTS if head else (0.0,), grid):
        loss = hit = 0
        for fit, left_out in StratifiedKFold(3, shuffle=True, random_state=3).split(x, y):
            center = alpha * x.std() * prior_of(x[fit], y[fit], head)
            weight, bias = fit_by_torch(z[fit], y[fit], center, C)
            logits = z[left_out] @ weight.T + bias
            target = torch.from_numpy(y[left_out])
            loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
            hit += (logits.argmax(1) == target).sum().item()
        losses[C, alpha], hits[C, alpha] = loss, hit
    probe = fit_probe(x, y, head, seed=3)
    best = min(losses, key=losses.get)
    assert (probe.C, probe.prior_weight) == best and probe.accuracy == pytest.approx(hits[best] / len(y))
    assert not head or probe.prior_weight > 0  # else it would not be known to work


def test_each_minimum_of_the_search_is_scipy_s_to_a_millionth(problem, monkeypatch):
    """Of the objective: in cross-validation, whose tolerance is the coarser, and at the end."""
    minimum, searched = probing._minimum, set()

    def checked(z, y, expected_rows, C, alpha, start, tolerance):
        theta = minimum(z, y, expected_rows, C, alpha, start, tolerance)
        prior = alpha * torch.stack([expected_rows[y == label].mean(0) for label in range(y.max() + 1)])

        def value(flat):
            weight, bias = torch.as_tensor(flat).reshape(prior.shape).split([z.shape[1] - 1, 1], 1)
            return ((weight - prior[:, :-1]).square().sum() / 2 + C * torch.nn.functional.cross_entropy(
                z[:, :-1] @ weight.T + bias.T, y, reduction="sum"))

        def gradient(flat):
            return torch.autograd.functional.jacobian(value, torch.as_tensor(flat)).numpy()

        least = minimize(lambda flat: value(flat).item(), np.zeros(prior.numel()), jac=gradient, tol=1e-9).fun
        assert value(theta.ravel()).item() == pytest.approx(least, rel=1e-6)
        searched.add((C, alpha))
        return theta

    monkeypatch.setattr("models.probe._minimum", checked)
    monkeypatch.setattr("models.probe.FOLDS", 2)
    x, y, head = problem
    probe = fit_probe(x, y, head)
    assert (probe.C, probe.prior_weight) in searched and len(searched) > 2


@pytest.mark.parametrize("best", [(5, 0), (0, 1), (6, 2), (3, 2)])
def test_the_search_walks_to_the_smallest_loss_and_leaves_points_out(best, monkeypatch):
    """The loss is that of logits that are wrong by more, the further C and alpha are from the best."""
    visited = set()

    def minimum(z, y, expected_rows, C, alpha, start, tolerance):
        i, j = probing.C_GRID.index(C), PRIOR_WEIGHTS.index(alpha)
        visited.add((i, j))
        theta = torch.zeros(2, z.shape[1], dtype=z.dtype)
        theta[1, -1] = abs(i - best[0]) + abs(j - best[1])
        return theta

    monkeypatch.setattr("models.probe._minimum", minimum)
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.repeat([0, 1], 10)
    probe = fit_probe(x, y, (np.ones((4, 3)), np.zeros(4)))
    assert (probe.C, probe.prior_weight) == (probing.C_GRID[best[0]], PRIOR_WEIGHTS[best[1]])
    assert len(visited) <= 12, "of 21"


@pytest.mark.parametrize("sizes", [(7, 12, 3), (1, 2, 40, 5), (30, 30)])
def test_the_folds_are_scikit_learn_s(sizes):
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the number of folds
        splits = [left_out for _, left_out in StratifiedKFold(5, shuffle=True, random_state=4).split(y, y)]
    fold_of = stratified_folds(y, 5, 4)
    assert all(np.array_equal(np.flatnonzero(fold_of == k), left_out) for k, left_out in enumerate(splits))


def test_a_repeat_has_the_same_bits(problem, monkeypatch):
    monkeypatch.setattr("models.probe.FOLDS", 2)
    first, second = (fit_probe(*problem) for _ in range(2))
    assert np.array_equal(first.weight, second.weight) and np.array_equal(first.bias, second.bias)


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1), (2, 1), (2, 1, 1), (1, 4, 9), (3, 3), (4,)])
def test_classes_of_a_few_images_or_one(counts, recwarn):
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.eye(len(counts))[y] + 0.01 * np.random.default_rng(0).normal(size=(len(y), len(counts)))
    probe = fit_probe(x, y)
    assert ((x @ probe.weight.T + probe.bias).argmax(1) == y).all()
    assert (probe.accuracy is None) == (max(counts) == 1) and not recwarn.list


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
                                  "eva02_tiny_patch14_224"])
def test_the_head_of_a_model_computes_what_the_probe_does(arch):
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=3, **TINY).eval()
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


# The start of a training ------------------------------------------------------------------------------------


def photos(count):
    """Pictures of two classes, which differ by more than noise, and their targets."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(count) % 2
    shift = torch.randn(2, 3, 160, 160, generator=generator)
    return shift[targets] + 0.5 * torch.randn(count, 3, 160, 160, generator=generator), targets


@torch.no_grad()
def features_of(model):
    return model.eval()(photos(12)[0]).numpy()


@pytest.fixture
def short_grid(monkeypatch):
    monkeypatch.setattr("models.probe.C_GRID", (0.1, 1.0))
    monkeypatch.setattr("models.probe.FOLDS", 2)


def pretrained_model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=5)


@pytest.mark.parametrize("use_prior", [True, False])
def test_a_model_starts_from_the_probe_of_its_features(use_prior, short_grid):
    model, untouched, targets = pretrained_model(), pretrained_model(), photos(12)[1].tolist()
    record = start_from_probe(model, features_of, targets, use_prior, seed=3)
    expected = fit_probe(features_of(Features(untouched)), targets, read_head(untouched) if use_prior
                         else None, 3)
    weight, bias = read_head(model)
    assert np.allclose(weight, expected.weight, atol=1e-6) and np.allclose(bias, expected.bias, atol=1e-6)
    assert record.keys() == {"C", "trust", "accuracy", "seconds"} and record["seconds"] > 0
    assert (record["C"], record["trust"], record["accuracy"]) == (
        expected.C, expected.prior_weight, expected.accuracy)
    assert use_prior or record["trust"] == 0
    for name, value in untouched.state_dict().items():
        assert name.startswith("head.") or torch.equal(model.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_features_may_be_computed_in_parts_by_several_ranks(short_grid):
    """Each rank computes every second image's; what they gather is the same, and so is the head."""
    def gathered(model):
        parts = [model.eval()(photos(12)[0][rank::2]).detach().numpy() for rank in (0, 1)]
        features = np.empty((12, 64), np.float32)
        features[0::2], features[1::2] = parts
        return features

    one, two = pretrained_model(), pretrained_model()
    targets = photos(12)[1].tolist()
    start_from_probe(one, features_of, targets, True, seed=0)
    start_from_probe(two, gathered, targets, True, seed=0)
    assert torch.allclose(one.head.weight, two.head.weight, rtol=0,
                          atol=1e-4 * one.head.weight.abs().max().item())
