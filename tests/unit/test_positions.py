import math

import numpy as np
import pytest
import timm
import torch

from common.errors import BadInput
from interpret.positions import position_similarity, position_statistics, random_statistics
from models import vit

SMALL = {"depth": 1, "embed_dim": 64, "num_heads": 2}


@pytest.mark.parametrize("arch, kind", [
    ("vit_small_patch16_dinov3", "rotary"), ("beit_base_patch16_224", "relative")])
def test_a_model_with_other_positions_is_refused(arch, kind):
    with pytest.raises(BadInput, match=f"has {kind} positions, and no learned embedding.*vit_base_patch16"):
        position_similarity(timm.create_model(arch, **SMALL))


def test_a_model_without_positions_is_refused():
    model = timm.create_model("test_vit")
    model.pos_embed = None
    with pytest.raises(BadInput, match="has no positions"):
        position_similarity(model)


def test_position_statistics_agree_with_a_loop_over_all_pairs():
    torch.manual_seed(0)
    height, width = 3, 5
    similarity = torch.rand(height, width, height, width)
    statistics = position_statistics(similarity)
    row, column, elsewhere, by_distance, adjacent = [], [], [], {}, []
    for a in np.ndindex(height, width):
        others = {b: similarity[a][b].item() for b in np.ndindex(height, width) if b != a}
        for b, value in others.items():
            (row if a[0] == b[0] else column if a[1] == b[1] else elsewhere).append(value)
            by_distance.setdefault(round(math.dist(a, b)), []).append(value)
        nearest = max(others, key=others.get)
        adjacent.append(abs(nearest[0] - a[0]) <= 1 and abs(nearest[1] - a[1]) <= 1)
    assert statistics["same_row"] == pytest.approx(np.mean(row))
    assert statistics["same_column"] == pytest.approx(np.mean(column))
    assert statistics["elsewhere"] == pytest.approx(np.mean(elsewhere))
    assert statistics["nearest_adjacent"] == pytest.approx(np.mean(adjacent))
    by_distance = [np.mean(by_distance[distance]) for distance in range(1, max(by_distance) + 1)]
    assert statistics["by_distance"] == pytest.approx(by_distance)


def test_random_embeddings_know_nothing_of_positions():
    random = random_statistics((6, 6), 64)
    assert all(len(draws) == 100 for draws in random.values())
    assert all(abs(random[name].mean()) < 0.01 for name in ("same_row", "same_column", "elsewhere"))
    reach = [2, 3, 3, 3, 3, 2]  # rows or columns at most one away
    neighbours = np.mean([reach[i] * reach[j] - 1 for i in range(6) for j in range(6)])
    assert random["nearest_adjacent"].mean() == pytest.approx(neighbours / 35, rel=0.1)
    resampled = random_statistics((6, 6), 64, (12, 12), draws=5)
    assert resampled["nearest_adjacent"].min() > 0.9, "resampling alone makes neighbours alike"


@pytest.mark.real_data
def test_real_position_embeddings_are_most_like_those_next_to_them(real_data):
    path = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    similarity = position_similarity(vit.create("vit_tiny_patch16_224", weights=path)[0]).numpy()
    for row in range(14):
        for column in range(14):
            others = similarity[row, column].copy()
            others[row, column] = -2
            nearest = np.unravel_index(others.argmax(), others.shape)
            assert abs(nearest[0] - row) + abs(nearest[1] - column) == 1
