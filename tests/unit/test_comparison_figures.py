"""What the figures of several runs show, by the lines, texts and pictures that they are made of."""

import numpy as np

from plots.calibration import draw_reliability
from plots.confusion import draw_confusion
from plots.curves import draw_learning_rates, draw_settings_curves
from plots.photos import draw_photos


def legend_of(figure):
    legend, = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_curves_are_means_over_seeds_in_bands_of_their_range():
    curves = [{"name": "one $x$", "epochs": np.arange(1, 4), "passes": np.array([10, 20, 30]),
               "loss": np.array([[3, 2, 1], [1, 1, 1]]),
               "training": np.array([[0.5, 0.6, 0.7], [0.7, 0.8, 0.9]]),
               "held_out": np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]]), "val": (0.35, 2.5)},
              {"name": "two", "epochs": np.arange(1, 3), "passes": np.array([20, 40]),
               "loss": np.array([[4, 3]]), "training": np.array([[0.5, 0.6]]), "held_out": None,
               "val": (0.4, 2)}]
    figure = draw_settings_curves(curves)
    (loss, accuracy, *below) = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[2, 1.5, 1], [4, 3]]
    training, held_out, val, other, its_val, *_ = accuracy.lines
    assert np.allclose(training.get_ydata(), [0.6, 0.7, 0.8]) and training.get_linestyle() == "--"
    assert np.allclose(held_out.get_ydata(), [0.2, 0.3, 0.4]) and held_out.get_linestyle() == "-"
    assert val.get_xydata().tolist() == [[2.5, 0.35]] and val.get_marker() == "*"
    assert other.get_linestyle() == "--" and its_val.get_xydata().tolist() == [[2, 0.4]]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training", "held out", "val"]
    low, high = accuracy.get_ylim()
    assert 0.05 < low < 0.1 and 0.9 < high < 0.95, "where the data is"
    band = accuracy.collections[1].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in band} >= {(1, 0.1), (1, 0.3), (3, 0.3), (3, 0.5)}
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["epoch"] * 2 + ["forward-backward passes over a batch"] * 2
    assert [line.get_xdata().tolist() for line in below[1].lines] == [
        [10, 20, 30], [10, 20, 30], [25], [20, 40], [40]]
    assert len(draw_settings_curves(curves[:1]).axes) == 2, "passes are epochs in another unit"
    assert legend_of(figure) == ["one $x$", "two"]


def test_learning_rates_are_means_over_seeds_with_bars_of_their_range():
    sweeps = [{"name": "adam", "rates": [1e-4, 3e-4], "val": [np.array([0.5, 0.7]), np.array([0.8])],
               "held_out": None},
              {"name": "sam", "rates": [1e-4], "val": [np.array([0.9])], "held_out": [np.array([0.95])]}]
    figure = draw_learning_rates(sweeps)
    val, held_out = figure.axes
    (line, _, (bars,)), (sam_line, *_) = val.containers
    assert line.get_ydata().tolist() == [0.6, 0.8] and sam_line.get_ydata().tolist() == [0.9]
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], [[0.5, 0.7], [0.8, 0.8]])
    assert np.allclose(line.get_xdata(), [1e-4, 3e-4], rtol=0.05) and val.get_xscale() == "log"
    assert line.get_xdata()[0] != sam_line.get_xdata()[0], "beside one another"
    assert [container[0].get_ydata().tolist() for container in held_out.containers] == [[0.95]]
    assert (val.get_title(), held_out.get_title()) == ("accuracy on val", "accuracy on the held-out part")
    assert [label.get_text() for label in val.get_xticklabels()] == ["1e-4", "3e-4"]
    assert legend_of(figure) == ["adam", "sam"]
    assert len(draw_learning_rates(sweeps[:1]).axes) == 1
    equal = np.array([0.1] * 3)
    assert equal.mean() > 0.1, "rounded, beyond the most of them"
    draw_learning_rates([{"name": "adam", "rates": [1e-4], "val": [equal], "held_out": None}])


def test_reliability_has_a_panel_a_setting_and_a_point_a_bin():
    curves = [(f"setting {i}", np.array([10, 30]), np.array([0.2, 0.9]), np.array([0.5, 0.7]))
              for i in range(5)]
    figure = draw_reliability(curves)
    assert [axes.get_title() for axes in figure.axes] == [f"setting {i}" for i in range(5)]
    points = figure.axes[4].collections[0]
    assert points.get_offsets().tolist() == [[0.2, 0.5], [0.9, 0.7]]
    small, large = points.get_sizes() - 6
    assert np.isclose(large, 3 * small), "areas go with the number of answers"
    assert np.allclose(figure.axes[0].lines[0].get_xydata(), [[0, 0], [1, 1]])


def test_a_confusion_matrix_has_counts_and_shares():
    counts = np.array([[2.5, 1.5, 0], [0, 3, 0], [0, 0, 0]])
    axes = draw_confusion(counts, range(3), range(3), ["a", "b", "x" * 40], "three").axes[0]
    shares = axes.images[0].get_array()
    assert np.allclose(shares[:2], [[0.625, 0.375, 0], [0, 1, 0]]) and shares.mask[2].all()
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "2.5", (1, 0): "1.5", (1, 1): "3"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "x" * 27 + "…"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_part_of_a_confusion_matrix_keeps_the_shares_of_all():
    counts = np.diag([3, 3, 3]) + np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    figure = draw_confusion(counts, np.array([0, 1]), np.array([0, 1]), ["a", "b", "c"], "many")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[3 / 4, 0], [0, 1]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert figure.get_suptitle() == "many; the 2 of 3 classes confused most"


def test_the_most_confused_classes_have_numbers_below_the_whole_matrix():
    counts = np.array([[3, 0, 1], [0, 2, 0], [4, 0, 5]])
    whole, part, _ = draw_confusion(counts, range(3), np.array([0, 2]), ["a", "b", "c"], "three").axes
    assert whole.images[0].get_array().shape == (3, 3) and not whole.texts
    assert part.images[0].get_array().tolist() == [[3 / 4, 1 / 4], [4 / 9, 5 / 9]]
    numbers = {text.get_position(): text.get_text() for text in part.texts}
    assert numbers == {(0, 0): "3", (1, 0): "1", (0, 1): "4", (1, 1): "5"}
    assert [label.get_text() for label in part.get_yticklabels()] == ["a", "c"]


def test_photos_have_their_captions_within_their_own_cells():
    photos = [(np.full((30, 40, 3), value, dtype=np.uint8), f"photo {value}") for value in (10, 20, 30)]
    figure = draw_photos([("two of them", photos[:2]), ("", photos[2:])], "title")
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [10, 20, 30]
    bands = figure.subfigs
    assert [band.get_suptitle() for band in bands] == ["two of them", ""]
    captions = [cell.get_supxlabel() for band in bands for cell in band.subfigs]
    assert captions == ["photo 10", "photo 20", "photo 30", ""]
    text = bands[0].subfigs[1]._supxlabel
    text.set_text("a caption that is " + "much " * 20 + "too long for a line of its cell")
    figure.draw_without_rendering()
    cell, extent = bands[0].subfigs[1].bbox, text.get_window_extent()
    assert cell.x0 <= extent.x0 and extent.x1 <= cell.x1, "it wraps"


def test_a_panel_without_a_bin_says_why():
    few, some = (np.zeros(0),) * 3, (np.array([12]), np.array([0.9]), np.array([0.8]))
    figure = draw_reliability([("few", *few), ("some", *some)])
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [["fewer than ten photos\nin every bin"], []]
