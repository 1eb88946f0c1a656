import numpy as np
import pytest
from matplotlib.figure import Figure

from engine.flags import optimizer_name
from plots.landscape import contour_levels, draw_landscapes, styles


def test_kinds_share_a_colour_and_differ_in_their_lines():
    looks = styles(["adam", "SAM(adam)", "adam", "SAM(adam)"])
    colours = [look["color"] for look in looks]
    assert colours == colours[:2] * 2 and colours[0] != colours[1]
    assert looks[0]["linestyle"] != looks[2]["linestyle"] and looks[0]["marker"] != looks[2]["marker"]
    assert len({look["color"] for look in styles(["adam"] * 4)}) == 4


def test_a_kind_is_the_optimizer_with_what_is_around_it():
    assert [optimizer_name({"optimizer": "adam", "sam": sam, "adaptive": adaptive}) for sam, adaptive in
            ((False, False), (True, False), (True, True))] == ["adam", "SAM(adam)", "ASAM(adam)"]


def test_levels_reach_from_the_least_to_the_most():
    levels = contour_levels(np.array([[-0.1, 0.5], [0.2, 3.9]]))
    assert levels[0] == -0.1 and levels[-1] == pytest.approx(3.9) and (np.diff(levels) > 0).all()
    assert np.diff(np.sqrt(levels - levels[0])) == pytest.approx(np.sqrt(4) / (len(levels) - 1))
    assert (np.diff(contour_levels(np.zeros((2, 2)))) > 0).all()


@pytest.mark.parametrize("count, lowest, ranks", [(1, 0.1, 3), (4, -0.005, 3), (2, 0.1, 0)])
def test_the_figure_shows_every_array(monkeypatch, count, lowest, ranks):
    """A loss that falls along the gradient, or a negative eigenvalue, cannot stand on a log scale."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))
    rng = np.random.default_rng(0)
    kinds = ["adam", "SAM(adam)", "adam", "sgd"]
    arrays = {"names": [f"${i}_x" for i in range(count)], "kinds": kinds[:count],
              "alphas": np.linspace(-1, 1, 5), "grid_alphas": np.linspace(-1, 1, 3),
              "rhos": np.array([0.05, 0.1]), "rise": lowest + rng.random((count, 2, 2)) / 100,
              "eigenvalues": lowest + rng.random((count, 2, ranks)) / 100, "loss": rng.random(count),
              "loss_1d": 1 + rng.random((count, 5)), "loss_2d": 1 + rng.random((count, 3, 3))}
    draw_landscapes(arrays, "title", "figure.svg")
    figure, = figures
    upper, lower = figure.subfigs
    curve, rise, *eigen = upper.axes
    assert [line.get_ydata().tolist() for line in curve.lines] == arrays["loss_1d"].tolist()
    scales = ["log", *2 * ["log" if lowest > 0 else "linear"]]
    assert [axes.get_yscale() for axes in upper.axes] == (scales if ranks else scales[:2])
    for axes, key in zip((rise, *eigen), ("rise", "eigenvalues")):
        means = [container.lines[0].get_ydata() for container in axes.containers]
        np.testing.assert_allclose(means, arrays[key].mean(1))
    assert [text.get_text() for text in upper.legends[0].get_texts()] == [
        f"{name}: {kind}" for name, kind in zip(arrays["names"], arrays["kinds"])]
    assert all(axes.axison for axes in lower.axes), "no cell is empty"
    titles = [axes.get_title() for axes in lower.axes if axes.get_title()]
    assert titles == [f"{name}: {kind}\nloss {loss:.3g} at +" for name, kind, loss in
                      zip(arrays["names"], arrays["kinds"], arrays["loss"])]
