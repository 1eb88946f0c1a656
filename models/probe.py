"""A linear probe: the head fitted to the frozen features of a timm model, as a start for fine-tuning.

(LP-FT, Kumar et al. 2022, arXiv:2202.10054.) The model's pretrained head can be the prior of the new one.
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

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
    fit the same head. `targets` and `seed` are `fit_probe`'s; `use_prior` makes the model's head the prior.
    Returns what config.json says of it: `C`, `trust` (the prior weight), `accuracy` and `seconds`.
    """
    start = time.monotonic()
    device = next(model.parameters()).device
    probe = fit_probe(features_of(Features(model)), targets, read_head(model) if use_prior else None, seed)
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


@threadpool_limits.wrap(limits=1)  # on small matrices, threads that wait for each other took 60 times as long
def fit_probe(features, targets, pretrained=None, seed=0):
    """Multinomial logistic regression: the weights W and bias b that minimise

        ||s (W - alpha W0)||^2 / 2 + C * sum_i cross-entropy(x_i W^T + b, y_i)

    where s, the standard deviation of all features, makes C free of their scale. The row of W0 for a class is
    the mean of the rows of the pretrained head, weighted by the mean probabilities that it gives the images
    of that class; without such a head alpha is 0. C and alpha are those of `C_GRID` and `PRIOR_WEIGHTS` with
    the smallest cross-entropy in stratified cross-validation, 1 and 0 where no class has two images.

    Takes features (N, D), targets (N,), in which each of 0 .. classes - 1 occurs, (weight (K, D), bias (K,))
    of a head that was trained on these features, or None, and the seed of the folds. Returns a Probe.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets)
    mean, scale = x.mean(0), x.std()
    z = (x - mean) / scale
    expected_rows = np.zeros_like(z)  # for each image, the pretrained head's row, expected over its classes
    if pretrained:
        rows, bias = pretrained
        expected_rows = softmax(x @ rows.T + bias, axis=1) @ (scale * rows)
    folds = min(FOLDS, np.bincount(y).max())
    C, alpha, accuracy = 1.0, 0.0, None
    if folds > 1:
        alphas = PRIOR_WEIGHTS if pretrained else (0.0,)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        C, alpha, accuracy = _choose(z, y, expected_rows, alphas, splitter)
    _, _, weight, bias = next(_fits(z, y, expected_rows, (alpha,), (C,)))
    weight = weight / scale
    return Probe(weight, bias - weight @ mean, C, alpha, accuracy)


def _fits(z, y, expected_rows, alphas, Cs):
    """(alpha, C, weight, bias) of each minimum, for the classes in y; a search begins at the last minimum."""
    labels, y = np.unique(y, return_inverse=True)
    prior = np.stack([expected_rows[y == label].mean(0) for label in range(len(labels))])
    one_hot = np.eye(len(labels))[y]
    for alpha in alphas:
        theta = np.zeros((len(labels), z.shape[1] + 1))
        for C in Cs:
            theta = _minimum(z, one_hot, z @ (alpha * prior).T, C, theta)
            yield alpha, C, theta[:, :-1] + alpha * prior, theta[:, -1]


def _minimum(z, one_hot, prior_logits, C, start):
    """(W - alpha W0, b) at the minimum, side by side."""

    def objective(theta):  # per image, and its gradient
        delta, bias = np.split(theta.reshape(start.shape), [-1], axis=1)
        log_p = log_softmax(prior_logits + z @ delta.T + bias.T, axis=1)
        error = np.exp(log_p) - one_hot
        value = np.square(delta).sum() / 2 - C * (log_p * one_hot).sum()
        gradient = np.column_stack([delta + C * error.T @ z, C * error.sum(0)])
        return value / (C * len(z)), gradient.ravel() / (C * len(z))

    result = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B",
                      options={"maxiter": 5000, "maxfun": 10000, "gtol": 1e-7, "ftol": 1e-14})
    return result.x.reshape(start.shape)


def _choose(z, y, expected_rows, alphas, splitter):
    """The best C and alpha, and the accuracy of their predictions for the images left out."""
    probabilities = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # some folds leave it out altogether
        splits = list(splitter.split(z, y))
    for fit, left_out in splits:
        for alpha, C, weight, bias in _fits(z[fit], y[fit], expected_rows[fit], alphas, C_GRID):
            of_all = probabilities.setdefault((C, alpha), np.full((len(y), y.max() + 1), 1e-12))
            of_all[np.ix_(left_out, np.unique(y[fit]))] = softmax(z[left_out] @ weight.T + bias, axis=1)
    losses = {key: log_loss(y, of_all / of_all.sum(-1, keepdims=True), labels=np.arange(y.max() + 1))
              for key, of_all in probabilities.items()}
    C, alpha = min(losses, key=losses.get)
    return C, alpha, float((probabilities[C, alpha].argmax(1) == y).mean())
