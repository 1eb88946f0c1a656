import unicodedata

import numpy as np
import pytest
from PIL import Image

from common.errors import BadInput
from datasets.masks import find_mask, find_masks, load_mask, patch_cover


def save(path, values, mode=None):
    Image.fromarray(np.array(values, dtype=np.uint8), mode).save(path)


def test_trimaps_and_plain_masks(tmp_path):
    save(tmp_path / "trimap.png", [[1, 2, 3], [1, 1, 2]])
    inside, outside = load_mask(find_mask(tmp_path, "trimap"), (3, 2))
    assert inside.tolist() == [[True, False, False], [True, True, False]]
    assert outside.tolist() == [[False, True, False], [False, False, True]], "the border is neither"
    for top in (1, 255):
        save(tmp_path / "plain.png", [[0, top, top], [0, 0, 0]])
        inside, outside = load_mask(find_mask(tmp_path, "plain"), (3, 2))
        assert inside.tolist() == [[False, True, True], [False] * 3] and np.array_equal(outside, ~inside)


def test_what_is_no_mask_is_said(tmp_path):
    save(tmp_path / "small.png", [[0, 1]])
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("x")
    for stem, message in (("small", "is 2x1 and its photo 3x2"), ("colour", "is not a mask"),
                          ("text", "is not a whole image"),
                          ("missing", "missing.png does not exist")):
        with pytest.raises(BadInput, match=message):
            load_mask(find_mask(tmp_path, stem), (3, 2))


def test_masks_of_photos_in_subfolders(tmp_path):
    (tmp_path / "0").mkdir()
    for name in ("0/a", "a", "b", unicodedata.normalize("NFD", "Köter")):
        save(tmp_path / f"{name}.png", [[0, 1]])
    assert find_masks(tmp_path, ["a", "b"]) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert find_masks(tmp_path, ["0/a"]) == [tmp_path / "0" / "a.png"], "not the one of another photo"
    assert find_masks(tmp_path, ["1/b", "0/a"]) == [tmp_path / "b.png", tmp_path / "a.png"]
    with pytest.raises(BadInput, match="1/a.png does not exist"):
        find_masks(tmp_path, ["0/a", "1/a"])
    assert find_mask(tmp_path, "Köter").is_file()


@pytest.mark.parametrize("box", [(3.0, 2.0, 27.0, 26.0), (1.5, -4.25, 31.5, 25.75), (-6.0, -6.0, 38.0, 36.0)])
def test_patches_are_covered_by_area(box):
    """Against the mask sampled at 211 x 211 points a patch."""
    height, width, grid = 30, 32, (4, 5)
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    y, x = (start + (end - start) * (np.arange(211 * count) + 0.5) / (211 * count)
            for start, end, count in ((box[1], box[3], grid[0]), (box[0], box[2], grid[1])))
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    sampled = mask[np.clip(y, 0, height - 1).astype(int)][:, np.clip(x, 0, width - 1).astype(int)] & inside
    expected = sampled.reshape(grid[0], 211, grid[1], 211).mean((1, 3))
    np.testing.assert_allclose(patch_cover(mask, box, grid), expected, atol=0.01)
