"""Statistics of right and wrong answers: intervals, tests of differences, calibration and confusions."""

import math

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
BINS = 15  # of the confidence, as in Guo et al. 2017


def wilson_interval(correct, total):
    """The 95 % interval of a proportion, (low, high): Wilson's score interval (1927)."""
    share, spread = correct / total, Z95**2 / total
    center = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def wins_and_losses(first, second):
    """On how many images a larger share of the first one's runs is right than of the second's, and a smaller.

    `first` and `second` are bool (runs, images). With one run each these are McNemar's two counts.
    """
    # in whole numbers, since equal shares of different numbers of runs may differ as floats
    ahead = first.sum(0) * len(second) - second.sum(0) * len(first)
    return int((ahead > 0).sum()), int((ahead < 0).sum())


def mcnemar(wins, losses):
    """The exact two-sided p of McNemar's test: under the null hypothesis wins ~ Binomial(wins + losses, 1/2).

    McNemar 1947; exact as in Agresti, Categorical Data Analysis (2013), 11.1. It is 1 where nothing differs.
    """
    from scipy.stats import binomtest  # takes a second, which an interval alone need not wait for

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values):
    """Holm's adjusted p-values (1979), in the order given: with p(1) <= ... <= p(m),

        adjusted p(i) = min(1, max over j <= i of (m - j + 1) p(j))
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def paired_margin(first, second):
    """Half the width of the 95 % interval of the difference in accuracy of two settings on the same images.

    Agresti and Min's (2005): Wald's interval for paired shares, with half an image more in each cell of the
    2 x 2 table, so that few images without a difference are no proof. For one run each, wins b and losses c,

        margin = 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2)) / (n + 2)

    `first` and `second` are bool (runs, images); of several runs an image's shares of right answers count.
    """
    difference = np.mean(first, 0) - np.mean(second, 0)
    total = len(difference) + 2
    return Z95 * math.sqrt((difference**2).sum() + 1 - difference.sum() ** 2 / total) / total


def reliability(confidence, correct):
    """The reliability curve: (count, mean confidence, accuracy) of the answers in each bin, (BINS,) each.

    Bin k holds confidences in (k / BINS, (k + 1) / BINS]; an empty one has NaN for the means.
    """
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return count, *(np.bincount(bins, values, BINS) / count for values in (confidence, correct))


def expected_calibration_error(confidence, correct):
    """How far confidence is from accuracy, 0 to 1 (Naeini et al. 2015):

        ECE = sum over bins of |bin| / n |accuracy - mean confidence|
    """
    count, mean_confidence, accuracy = reliability(confidence, correct)
    return float(np.nansum(count * np.abs(accuracy - mean_confidence)) / count.sum())


def most_confused(counts, most=5):
    """The unordered pairs of classes most often taken for each other: (count, i, j), i < j, the most first.

    `counts` (classes, classes) is a confusion matrix. Pairs without a mistake are left out.
    """
    both = np.triu(counts + counts.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:most]
    return [(both[i, j], i, j) for i, j in (divmod(int(cell), len(both)) for cell in order) if both[i, j] > 0]
