"""A linear probe: the head fitted to the frozen features of a timm model, as a start for fine-tuning (LP-FT, Kumar et al. 2022,
arXiv:2202.10054)."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C, the inverse of the penalty
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
        accuracy: by cross-validation; None where no class has two images.
    """

    weight: np.ndarray
    bias: np.ndarray
    C: float
    accuracy: float | None


@threadpool_limits.wrap(limits=1)  # on matrices this small, threads that wait for each other cost up to 60 times the time
def fit_probe(features, targets, seed=0):
    """Multinomial logistic regression: the weights W and bias b that minimise

        ||s W||^2 / 2 + C * sum_i cross-entropy(x_i W^T + b, y_i)

    where s, the standard deviation of all features, makes C free of their scale. C is the one of `STRENGTHS` with the
    smallest cross-entropy in stratified cross-validation, 1 where that cannot be had.

    Args:
        features: (N, D). targets: (N,), whole numbers; each of 0 .. classes - 1 occurs. seed: of the folds.
    Returns a Probe.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets)
    mean, scale = x.mean(0), x.std()
    z = (x - mean) / scale
    folds = min(FOLDS, np.bincount(y).max())
    C, accuracy = 1.0, None
    if folds > 1:
        C, accuracy = _choose(z, y, StratifiedKFold(folds, shuffle=True, random_state=seed))
    fitted = _regression(C, y).fit(z, y)
    weight, bias = fitted.coef_ / scale, fitted.intercept_
    if len(weight) == 1:  # of two classes, it models the logit of the second one alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weight, bias - weight @ mean, C, accuracy)


def _regression(C, targets):
    # of two classes, it penalises the difference of their weights, which is twice what the two weights themselves cost
    return LogisticRegression(C=C * (1 + (len(set(targets.tolist())) == 2)), max_iter=2000, tol=1e-6)


def _choose(z, y, folds):
    """The best C, and the accuracy of its predictions for the images left out."""
    probabilities = np.full((len(STRENGTHS), len(y), y.max() + 1), 1e-12)  # of classes that a fold leaves out altogether
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # some folds leave it out: see above
        parts = list(folds.split(z, y))
    for train, test in parts:
        for row, C in zip(probabilities, STRENGTHS):
            fitted = _regression(C, y[train]).fit(z[train], y[train])
            row[np.ix_(test, fitted.classes_)] = fitted.predict_proba(z[test])
    probabilities /= probabilities.sum(-1, keepdims=True)
    losses = [log_loss(y, row, labels=np.arange(y.max() + 1)) for row in probabilities]
    best = int(np.argmin(losses))
    return STRENGTHS[best], float((probabilities[best].argmax(1) == y).mean())


@torch.no_grad()
def set_head(model, probe):
    """Make the head of a timm model compute the probe's logits. Both heads of a distilled model: it takes their mean."""
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))
