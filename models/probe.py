"""A linear probe: the head fitted to the frozen features of a timm model, as a start for fine-tuning.

(LP-FT, Kumar et al. 2022, arXiv:2202.10054.) The model's pretrained head can be the prior of the new one.
"""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

C_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # inverse regularisation strengths
PRIOR_WEIGHTS = (0.0, 0.5, 1.0)  # alpha, how far the weights are pulled towards those of the pretrained head
FOLDS = 5


class Features(torch.nn.Module):
    """What the head of a timm model takes: images (N, 3, H, W) -> features (N, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


@dataclass
class Probe:
    """A fitted probe: logits = features @ weight.T + bias."""

    weight: np.ndarray  # float64 (classes, D)
    bias: np.ndarray  # float64 (classes,)
    C: float  # the inverse regularisation strength
    prior_weight: float  # alpha, the weight of the pretrained head as the prior
    accuracy: float | None  # by cross-validation; None where no class has two images


def start_from_probe(model, features_of, targets, use_prior, seed):
    """Give a timm model the head that a probe of its frozen features computes, one output a class.

    `features_of(Features(model))` returns the features (N, D) of all images to train on, on every rank: all
    fit the same head, on the CPU: a GPU takes its many small steps no faster. `targets` and `seed` are
    `fit_probe`'s; `use_prior` makes the model's head the prior. Returns what config.json says of it: `C`,
    `trust` (the prior weight), `accuracy` and `seconds`.
    """
    start = time.monotonic()
    device = next(model.parameters()).device
    head = read_head(model) if use_prior else None
    probe = fit_probe(features_of(Features(model)), targets, head, seed)
    model.reset_classifier(len(probe.bias))
    set_head(model, probe)
    model.to(device)
    return {"C": probe.C, "trust": probe.prior_weight, "accuracy": probe.accuracy,
            "seconds": time.monotonic() - start}


def read_head(model):
    """(weight (K, D), bias (K,)), float64, of a timm model's head, of two the mean; None without one."""
    heads = _heads(model)
    if not all(isinstance(head, torch.nn.Linear) for head in heads):
        return None
    weights, biases = zip(*((head.weight, head.bias) for head in heads))
    return tuple(torch.stack(values).mean(0).double().cpu().detach().numpy() for values in (weights, biases))


@torch.no_grad()
def set_head(model, probe):
    """Make the head of a timm model, or both heads of a distilled one, compute the probe's logits."""
    for head in _heads(model):
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))


def _heads(model):
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


@contextmanager
def _one_thread_each():
    """A pool of as many workers as torch has threads, which meanwhile uses one in each of them.

    Threads that share the work on a small matrix wait for each other, on busy cores most of the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


def fit_probe(features, targets, pretrained=None, seed=0):
    """Multinomial logistic regression: the weights W and bias b that minimise

        ||s (W - alpha W0)||^2 / 2 + C * sum_i cross-entropy(x_i W^T + b, y_i)

    where s, the standard deviation of all features, makes C free of their scale. The row of W0 for a class is
    the mean of the rows of the pretrained head, weighted by the mean probabilities that it gives the images
    of that class; without such a head alpha is 0. C and alpha are those of `C_GRID` and `PRIOR_WEIGHTS` whose
    cross-entropy in stratified cross-validation is below that of their neighbours in the grid, searched for
    from the middle C and the largest alpha; 1 and 0 where no class has two images.

    Takes features (N, D), targets (N,), in which each of 0 .. classes - 1 occurs, (weight (K, D), bias (K,))
    of a head that was trained on these features, or None, and the seed of the folds. Returns a Probe.
    """
    exact = functools.partial(torch.as_tensor, dtype=torch.float64)
    x, y = exact(np.asarray(features)), torch.as_tensor(targets)
    mean, scale = x.mean(0), x.std(correction=0)
    z = (x - mean) / scale
    axes = torch.linalg.eigh(z.T @ z).eigenvectors  # along them the features are uncorrelated
    ones = z.new_ones(len(z), 1)
    expected_rows = torch.zeros_like(z)  # an image's: the pretrained head's row, expected over its classes
    if pretrained:
        rows, bias = map(exact, pretrained)
        expected_rows = torch.softmax(x @ rows.T + bias, 1) @ (scale * rows @ axes)
    data = torch.cat([z @ axes, ones], 1), y, torch.cat([expected_rows, 0 * ones], 1)
    folds = min(FOLDS, int(y.bincount().max()))
    fold_of = torch.from_numpy(stratified_folds(y.numpy(), folds, seed))
    C, alpha, accuracy = 1.0, 0.0, None
    with _one_thread_each() as workers:
        if folds > 1:
            C, alpha, accuracy = _choose(*data, PRIOR_WEIGHTS if pretrained else (0.0,), fold_of, workers)
        theta = _minimum(*data, C, alpha, None, 1e-12)
    weight = theta[:, :-1] @ axes.T / scale
    return Probe(weight.numpy(), (theta[:, -1] - weight @ mean).numpy(), C, alpha, accuracy)


def stratified_folds(y, count, seed):
    """The fold, 0 .. count - 1, of each image: those of scikit-learn's StratifiedKFold, shuffled by `seed`.

    Takes the targets (N,), numpy; a class may have fewer images than there are folds.
    """
    generator = np.random.RandomState(seed)
    _, first, sizes = np.unique(y, return_index=True, return_counts=True)
    order = np.argsort(first)  # classes in the order in which they first occur
    labels = y[np.sort(first)]
    in_order = np.repeat(labels, sizes[order])
    fold_of = np.empty(len(y), int)
    for label in labels:
        folds = np.repeat(np.arange(count), [(in_order[fold::count] == label).sum() for fold in range(count)])
        generator.shuffle(folds)
        fold_of[y == label] = folds
    return fold_of


def _minimum(z, y, expected_rows, C, alpha, start, tolerance):
    """(W, b) at the minimum, side by side, searched from `start`, or else from the prior.

    Each of the classes 0 .. y.max() occurs. The last column of z is 1, that of `expected_rows` 0. The search
    ends when a step lowers the objective by less than `tolerance` of it.
    """
    one_hot = torch.nn.functional.one_hot(y).to(z)
    prior = alpha * (one_hot.T @ expected_rows) / one_hot.sum(0)[:, None]
    # about the curvature along each axis, as in `theta / units` it is then alike along all
    units = (0.01 * z.square().mean(0) + 1 / (C * len(z))).rsqrt()
    theta = prior if start is None else start
    for dtype, enough in ((torch.float32, 1e-7), (torch.float64, tolerance)):  # the first takes half the time
        theta = _descend(*(values.to(dtype) for values in (theta, prior, units, z)), y, C, enough)
    return theta


def _descend(start, prior, units, z, y, C, tolerance):
    """Follow L-BFGS from `start`, (W, b), in the precision of all arguments."""
    phi = (start / units).requires_grad_()

    def objective():  # per image
        theta = phi * units
        return (theta - prior)[:, :-1].square().sum() / (2 * C * len(z)) + cross_entropy(z @ theta.T, y)

    def closure():
        phi.grad = None
        value = objective() / first
        value.backward()
        return value

    first = objective().item() or 1.0  # 0 for a single class
    torch.optim.LBFGS([phi], max_iter=5000, max_eval=10000, history_size=20, tolerance_grad=0,
                      tolerance_change=tolerance, line_search_fn="strong_wolfe").step(closure)
    return (phi * units).detach()


def _choose(z, y, expected_rows, alphas, fold_of, workers):
    """The best C and alpha, and the accuracy of their predictions for the images left out."""
    starts = {}  # by fold: (W, b) at the point before
    classes, folds = int(y.max()) + 1, range(int(fold_of.max()) + 1)

    @functools.cache
    def evaluate(i, j):  # C_GRID[i], alphas[j] -> (cross-entropy, accuracy)
        def fit(fold):
            rest = fold_of != fold
            labels, targets = y[rest].unique(return_inverse=True)
            starts[fold] = theta = _minimum(
                z[rest], targets, expected_rows[rest], C_GRID[i], alphas[j], starts.get(fold), 3e-9)
            return labels, (z[~rest] @ theta.T).log_softmax(1)

        log_p = z.new_full((len(y), classes), np.log(1e-12))  # of classes that a fold leaves out
        for fold, (labels, values) in zip(folds, workers.map(fit, folds)):
            log_p[(fold_of == fold).nonzero(), labels] = values
        return cross_entropy(log_p, y).item(), (log_p.argmax(1) == y).double().mean().item()

    i, j = len(C_GRID) // 2, len(alphas) - 1
    while True:
        near = [(k, m) for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
                if k in range(len(C_GRID)) and m in range(len(alphas))]
        better = next((point for point in near if evaluate(*point)[0] < evaluate(i, j)[0]), None)
        if not better:
            return C_GRID[i], alphas[j], evaluate(i, j)[1]
        i, j = better
