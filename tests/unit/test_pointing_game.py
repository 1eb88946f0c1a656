import numpy as np
import pytest
import torch

from interpret import grounding


def test_pointing_is_what_the_masks_say():
    inside, other = torch.zeros(4, 4), torch.zeros(4, 4)
    inside[0, 0], inside[0, 1], other[3, 3] = 1, 0.5, 1
    attention = torch.zeros(4, 4)
    attention[0, 0], attention[1, 2], attention[3, 3] = 0.3, 0.5, 0.2
    pointing = grounding.point(attention, inside, other)
    assert pointing.hit == 1, "beside a cell that the object touches"
    assert np.allclose(pointing, [1, 6 / 16, 0.3, 1.5 / 16, 0.2])
    assert grounding.point(attention.flip(1), inside, other).hit == 1
    assert grounding.point(attention, other, inside).hit == 0
    pair = [("shape", pointing), ("shape", grounding.Pointing(0, 0, 0, 0, 0))]
    assert grounding.pointing_table(pair)["shape"] == pytest.approx(
        {"tokens": 2, **{name: value / 2 for name, value in pointing._asdict().items()}})


def test_each_token_points_at_the_group_that_it_speaks_of():
    """The first group covers one cell, the second two; the map of token t is t + 1 on the cell of the first,
    and ten times that on each cell of the second."""
    first, second = torch.zeros(3, 3), torch.zeros(3, 3)
    first[0, 0] = second[2, 1] = second[2, 2] = 1
    tokens = ["a", "red", "star", "next", "to", "two", "blue", "cross", "##es", "zebra", "[SEP]"]
    attention = torch.stack([(t + 1) * (first + 10 * second) for t in range(len(tokens))])
    pointings = grounding.point_tokens(tokens, attention, (first, second))
    assert [(word_class, round(one.mass), round(one.elsewhere)) for word_class, one in pointings] == [
        ("article", 1, 20), ("article of the first", 1, 20), ("colour", 2, 40), ("shape", 3, 60),
        ("relation", 84, 0), ("relation", 105, 0), ("number", 120, 6), ("colour", 140, 7), ("shape", 160, 8),
        ("plural", 180, 9), ("unknown", 200, 10), ("end", 231, 0)]
    swapped = grounding.point_tokens(["above", "a"], attention[:2], (first, second))
    assert [word_class for word_class, _ in swapped] == ["relation", "article", "article of the second"]

    table = grounding.pointing_table(pointings)
    assert list(table) == sorted({word_class for word_class, _ in pointings})
    assert list(table["colour"]) == ["tokens", "hit", "chance", "mass", "area", "elsewhere"]
    assert table["colour"]["tokens"] == 2 and table["article"]["tokens"] == 1
    assert table["colour"]["mass"] == (2 + 140) / 2 and table["colour"]["elsewhere"] == (40 + 7) / 2
    assert grounding.pointing_table([]) == {}
