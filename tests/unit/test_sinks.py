"""Patches that [CLS] attends to whatever the photo."""

import numpy as np
import pytest
import torch

from interpret.occlusion import occlusion
from interpret.photos import Viewer
from interpret.sinks import find_sinks, plain_images, sinks_in_words
from tests.helpers.checkpoints import checkpoint, plant_sink, write_checkpoint

CPU = torch.device("cpu")
ROW, COLUMN = 2, 7


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """Of a model with a sink."""
    content = checkpoint()
    plant_sink(content["state_dict"], (10, 10), ROW, COLUMN)
    path = tmp_path_factory.mktemp("sink") / "best.pt"
    torch.save(content, path)
    return Viewer(CPU, path)


@pytest.fixture
def photo(viewer, shapes):
    (photo,) = viewer.attend([shapes / "val" / "2_1.jpg"])
    return photo


def others():
    counts = np.ones((10, 10), bool)
    counts[ROW, COLUMN] = False
    return counts


def test_a_sink_is_found_in_images_without_content_and_a_model_without_one_has_none(viewer, tmp_path):
    for image in plain_images((20, 30)):
        assert image.size == (20, 30) and len(image.getcolors()) == 1
    sinks, times = viewer.find_sinks()
    assert np.array_equal(sinks, ~others()) and times > 5
    without = Viewer(CPU, write_checkpoint(tmp_path / "best.pt"))
    for sinks, times in (viewer.find_sinks(block=0), without.find_sinks()):
        assert not sinks.any() and times == 0


def test_a_sink_has_more_than_five_times_an_even_share_on_average():
    maps = np.full((2, 5, 4), 0.01)
    maps[0, 1, 2] = maps[1, 4, 3] = 1
    share = 1 / 1.19 / 2 + 0.01 / 1.19 / 2
    sinks, times = find_sinks(maps)
    assert np.argwhere(sinks).tolist() == [[1, 2], [4, 3]] and times == pytest.approx(20 * share)
    maps[1] = 0.01
    maps[0, 1, 2] = 0.13  # of the first map 13 of 32 parts, of the second 1 of 20: 4.6 times
    assert not find_sinks(maps)[0].any()


def test_words_name_eight_sinks_at_most():
    sinks = np.zeros((4, 4), bool)
    assert sinks_in_words(sinks, 0) == "no patch draws attention whatever the photo: there are no sinks"
    sinks[1, 3] = True
    assert sinks_in_words(sinks, 9.6).endswith(
        "1 of 16 patches draw attention whatever the photo, each about 10 times an even share where all is "
        "grey, and are framed (--without-sinks leaves them out): row 1 column 3")
    sinks[:3, :3] = True
    assert sinks_in_words(sinks, 9).endswith("row 2 column 0 and 2 more")


def test_what_lies_on_the_object_is_given_with_and_without_the_sink(viewer, photo, shapes):
    inside, outside = viewer.cover(photo.path, shapes / "masks" / "val" / "2_1.png")
    before = photo.attention.copy()
    (share, *_), (alone, area, peak, chance) = photo.ground(inside, outside)
    pairs = [(before[i, j], inside[i, j], outside[i, j]) for i in range(10) for j in range(10)
             if (i, j) != (ROW, COLUMN)]
    on, off = (sum(a * part[k] for a, *part in pairs) for k in (0, 1))
    covered, uncovered = (sum(part[k] for _, *part in pairs) for k in (0, 1))
    assert alone == pytest.approx(on / (on + off), rel=1e-5) and abs(alone - share) > 0.1
    assert area == pytest.approx(covered / (covered + uncovered), rel=1e-5) and 0 < chance < 1
    arrays = photo.arrays
    assert (arrays["share_on_object"], arrays["share_on_object_without_sinks"]) == (share, alone)
    assert arrays["peak_on_object_without_sinks"] == peak and arrays["share_of_area_without_sinks"] == area
    assert np.array_equal(arrays["attention"], before), "the map itself is the softmax"
    assert photo.title.endswith(f"\nwithout sinks {alone:.1%}, area {area:.1%}")
    cut = photo.shown(without_sinks=True)
    assert cut[ROW, COLUMN] == 0 and np.array_equal(cut[others()], before[others()])


def test_the_sink_is_the_last_patch_to_be_removed_without_it(viewer, photo):
    plain, without = (falls for _, falls in photo.occlude(viewer.model))
    order = torch.from_numpy(photo.attention.copy())[None]
    for falls in (plain, without):
        _, (alone,) = occlusion(viewer.model, photo.inputs, order)
        assert np.allclose(falls, alone, rtol=1e-5)
        order[0, ROW, COLUMN] = -1
    assert plain != without and np.array_equal(photo.arrays["occlusion_without_sinks"], without)
