"""What attention means: whether it lies on the object, and whether the prediction rests on it."""

import math

import pytest
import torch

from interpret.grounding import peaks_on, share_on
from interpret.occlusion import occlusion


def test_shares_and_peaks():
    attention = torch.tensor([[[0.1, 0.2, 0.0], [0.4, 0.1, 0.0], [0.0, 0.0, 0.0]]])
    inside = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    border = torch.tensor([[0.0, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    outside = 1 - inside - border
    share, area = share_on(attention, inside, outside)
    assert share.tolist() == pytest.approx([0.2 / 0.75]) and area.item() == pytest.approx(1.5 / 8.75)
    assert peaks_on(attention[0], inside) == (True, pytest.approx(6 / 9))  # two rows of three patches
    assert peaks_on(torch.eye(3).flip(0) * torch.tensor([[1.0], [2.0], [3.0]]), inside)[0] is False


def test_occlusion_against_a_model_that_is_known():
    """Its logit is the sum of the left column's pixels: without that column, it is 0."""
    class Left(torch.nn.Module):
        def forward(self, images):
            score = images[:, 0, :, :4].mean((1, 2))
            return torch.stack([score, torch.zeros_like(score)], 1)

    image = torch.ones(3, 16, 16)
    attention = torch.arange(16.0).reshape(4, 4)
    attention[:, 0] += 100  # the left column, from the bottom up
    whole, (rows, others) = occlusion(Left(), image, torch.stack([attention, -attention]), (0.125, 0.25, 0.5))
    probability = [1 / (1 + math.exp(-score)) for score in (1, 0.5, 0)]
    assert whole == pytest.approx(probability[0])
    assert [row[0] for row in rows] == [0.125, 0.25, 0.5]
    assert [row[1] for row in rows] == pytest.approx([probability[1], probability[2], probability[2]])
    assert all(row[1] < row[2] < whole for row in rows)
    assert rows[2][2] == pytest.approx(probability[1], abs=0.06), "half of the column is left on average"
    assert [row[1] for row in others] == pytest.approx([whole] * 3), "there the column comes last"
    assert [row[2] for row in others] == [row[2] for row in rows]
