import math
from fractions import Fraction

import numpy as np
import pytest

from compare import statistics


@pytest.mark.parametrize("correct, total, low, high", [
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
])
def test_wilson_interval_agrees_with_published_values(correct, total, low, high):
    assert statistics.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("wins, losses", [(1, 9), (9, 1), (0, 5), (6, 6), (7, 7), (0, 0), (3, 21), (12, 30)])
def test_mcnemar_is_the_exact_two_sided_binomial_tail(wins, losses):
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    assert statistics.mcnemar(wins, losses) == pytest.approx(float(min(1, 2 * Fraction(tail, 2**total))),
                                                             rel=1e-12)


def test_mcnemar_by_hand():
    assert statistics.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10) == pytest.approx(0.021484375)
    # Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91, table 1: b 1, c 7
    assert statistics.mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([0.03]) == [0.03] and statistics.holm([]) == []


def test_wins_count_images_that_the_larger_share_of_runs_gets_right():
    # 1, 1/3, 0, 2/3, 1, 1/3
    first = np.array([[1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0]], dtype=bool)
    second = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1]], dtype=bool)  # 1, 1/2, 1/2, 1/2, 0, 1/2
    assert statistics.wins_and_losses(first, second) == (2, 3)
    assert statistics.wins_and_losses(second, first) == (3, 2)
    tiled = np.tile(first, (3, 1))
    assert statistics.wins_and_losses(tiled, first) == (0, 0), "equal shares of 3 and of 9 runs"


def test_paired_margin_by_hand():
    first, second = np.zeros((1, 50), dtype=bool), np.zeros((1, 50), dtype=bool)
    first[0, :9], second[0, 9:12] = True, True  # b = 9, c = 3
    # Wald's variance of a difference of paired shares, with cells of 9.5, 3.5 and 39 of 52
    shares = np.array([9.5, 3.5, 39]) / 52
    variance = shares @ np.array([1, -1, 0])**2 - (shares @ [1, -1, 0])**2
    assert statistics.paired_margin(first, second) == pytest.approx(1.959964 * math.sqrt(variance / 52),
                                                                    rel=1e-6)
    margin = statistics.paired_margin(first, second)
    assert statistics.paired_margin(np.tile(first, (3, 1)), second) == pytest.approx(margin)
    same = first[:, :4]
    assert statistics.paired_margin(same, same) > 0.3, "four images without a difference prove nothing"


def test_calibration_error_by_hand():
    # one bin of (0.4667, 0.5333]: 1 of 2 right at 0.5; one of (0.8667, 0.9333]: 1 of 4 right at 0.9
    confidence, correct = [0.5, 0.5, 0.9, 0.9, 0.9, 0.9], [1, 0, 1, 0, 0, 0]
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.65)
    assert statistics.expected_calibration_error([1.0, 1.0], [1, 1]) == 0


def test_calibration_error_agrees_with_a_plain_loop():
    generator = np.random.default_rng(3)
    confidence = np.append(generator.random(500), [1 / 15, 2 / 15, 1.0])
    correct = generator.random(503) < confidence**2
    expected = 0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    # the upper edge of a bin belongs to it
    assert statistics.reliability([1 / 15, 2 / 15, 1.0], [1, 1, 1])[0].tolist() == [1, 1, *[0] * 12, 1]


def test_the_most_confused_pairs_are_unordered():
    counts = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 2, 1, 0], [0, 0, 0, 0]])
    assert statistics.most_confused(counts) == [(3, 1, 2), (2, 0, 1)]
    assert statistics.most_confused(counts, 1) == [(3, 1, 2)]
