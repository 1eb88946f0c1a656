"""A linear probe: the head fitted to the frozen features of a timm model, as a start for fine-tuning (LP-FT, Kumar et al. 2022,
arXiv:2202.10054). What the pretrained head knows of the images can be its prior."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C, the inverse of the penalty
TRUSTS = (0.0, 0.5, 1.0)  # alpha, how far the weights are pulled towards those of the pretrained head
FOLDS = 5


class Features(torch.nn.Module):
    """What the head of a timm model sees: images (N, 3, H, W) -> features (N, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


@dataclass
class Probe:
    """A fitted probe: logits = features @ weight.T + bias.

    Attributes:
        weight, bias: float64 arrays (classes, D) and (classes,).
        C: the inverse strength of the penalty.
        trust: alpha, the trust in the pretrained head.
        accuracy: by cross-validation; None where no class has two images.
    """

    weight: np.ndarray
    bias: np.ndarray
    C: float
    trust: float
    accuracy: float | None


def read_head(model):
    """(weight (K, D), bias (K,)) of the head of a timm model as float64 arrays, the mean of both heads of a distilled one;
    None where it has no head."""
    heads = _heads(model)
    if not all(isinstance(head, torch.nn.Linear) for head in heads):
        return None
    weights, biases = zip(*((head.weight, head.bias) for head in heads))
    return tuple(torch.stack(values).mean(0).double().cpu().detach().numpy() for values in (weights, biases))


@torch.no_grad()
def set_head(model, probe):
    """Make the head of a timm model compute the probe's logits. Both heads of a distilled model: it takes their mean."""
    for head in _heads(model):
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))


def _heads(model):
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


@threadpool_limits.wrap(limits=1)  # on matrices this small, threads that wait for each other cost up to 60 times the time
def fit_probe(features, targets, pretrained=None, seed=0):
    """Multinomial logistic regression: the weights W and bias b that minimise

        ||s (W - alpha W0)||^2 / 2 + C * sum_i cross-entropy(x_i W^T + b, y_i)

    where s, the standard deviation of all features, makes C free of their scale. A row of W0 stands for what the pretrained head
    takes the images of a class for: the mean of the rows of that head, weighted by its mean probabilities on these images;
    without such a head alpha is 0. C and alpha are those of `STRENGTHS` and `TRUSTS` with the smallest cross-entropy in
    stratified cross-validation, 1 and 0 where that cannot be had.

    Args:
        features: (N, D). targets: (N,), whole numbers; each of 0 .. classes - 1 occurs.
        pretrained: (weight (K, D), bias (K,)) of a head that was trained on these features, or None. seed: of the folds.
    Returns a Probe.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets)
    mean, scale = x.mean(0), x.std()
    z = (x - mean) / scale
    seen_as = np.zeros_like(z)  # the row of the pretrained head that each image is taken for
    if pretrained:
        rows, bias = pretrained
        seen_as = softmax(x @ rows.T + bias, axis=1) @ (scale * rows)
    folds = min(FOLDS, np.bincount(y).max())
    C, trust, accuracy = 1.0, 0.0, None
    if folds > 1:
        trusts = TRUSTS if pretrained else (0.0,)
        C, trust, accuracy = _choose(z, y, seen_as, trusts, StratifiedKFold(folds, shuffle=True, random_state=seed))
    _, _, weight, bias = next(_fits(z, y, seen_as, (trust,), (C,)))
    weight = weight / scale
    return Probe(weight, bias - weight @ mean, C, trust, accuracy)


def _fits(z, y, seen_as, trusts, strengths):
    """(alpha, C, weight, bias) of each minimum, for the classes in y; each search begins where the last one ended."""
    labels, y = np.unique(y, return_inverse=True)
    prior = np.stack([seen_as[y == label].mean(0) for label in range(len(labels))])
    ends = np.eye(len(labels))[y]
    for alpha in trusts:
        theta = np.zeros((len(labels), z.shape[1] + 1))
        for C in strengths:
            theta = _minimum(z, ends, z @ (alpha * prior).T, C, theta)
            yield alpha, C, theta[:, :-1] + alpha * prior, theta[:, -1]


def _minimum(z, ends, offset, C, start):
    """(W - alpha W0, b) at the minimum, side by side; alpha W0 gives the logits `offset`, and `ends` are one-hot targets."""

    def objective(theta):
        """Per image, and its gradient."""
        delta, bias = np.split(theta.reshape(start.shape), [-1], axis=1)
        log_p = log_softmax(offset + z @ delta.T + bias.T, axis=1)
        error = np.exp(log_p) - ends
        value = np.square(delta).sum() / 2 - C * (log_p * ends).sum()
        gradient = np.column_stack([delta + C * error.T @ z, C * error.sum(0)])
        return value / (C * len(z)), gradient.ravel() / (C * len(z))

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B",
                     options={"maxiter": 5000, "maxfun": 10000, "gtol": 1e-7, "ftol": 1e-14})
    return found.x.reshape(start.shape)


def _choose(z, y, seen_as, trusts, folds):
    """The best C and alpha, and the accuracy of their predictions for the images left out."""
    probabilities = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # some folds leave it out altogether
        parts = list(folds.split(z, y))
    for fit, left_out in parts:
        for alpha, C, weight, bias in _fits(z[fit], y[fit], seen_as[fit], trusts, STRENGTHS):
            of_all = probabilities.setdefault((C, alpha), np.full((len(y), y.max() + 1), 1e-12))
            of_all[np.ix_(left_out, np.unique(y[fit]))] = softmax(z[left_out] @ weight.T + bias, axis=1)
    losses = {}
    for key, of_all in probabilities.items():
        of_all /= of_all.sum(-1, keepdims=True)
        losses[key] = log_loss(y, of_all, labels=np.arange(y.max() + 1))
    C, alpha = min(losses, key=losses.get)
    return C, alpha, float((probabilities[C, alpha].argmax(1) == y).mean())
