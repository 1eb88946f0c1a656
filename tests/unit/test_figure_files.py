"""The images that a script draws figures of, and the names of the figures."""

import pytest
from PIL import Image

from common.errors import BadInput
from datasets.photos import find_images, refuse_to_overwrite


def test_no_output_may_take_the_place_of_an_input(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    paths = find_images([tmp_path])
    assert paths == [tmp_path / "a.png"]
    refuse_to_overwrite(tmp_path, ("json", "npz"), ["a"], paths)
    with pytest.raises(BadInput, match="would overwrite a.png"):
        refuse_to_overwrite(tmp_path / ".", ("json", "png"), ["a"], paths)


def test_figures_of_an_earlier_call_are_no_photos_and_photos_are_no_figures(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "made").mkdir()
    for name in ("a.npz", "a.json", "made/c.png"):
        (tmp_path / name).write_text("x")
    assert find_images([tmp_path], [tmp_path / "made"]) == [tmp_path / "a.jpg", tmp_path / "b.png"]
    (tmp_path / "b.npz").write_text("x")  # what it is of is unknown: the photo may be b.png
    with pytest.raises(BadInput, match="b.npz and .*b.png would have one figure"):
        find_images([tmp_path], [tmp_path / "made"])


@pytest.mark.parametrize("names, expected", [
    (["empty"], "holds no images"), (["missing.jpg"], "missing.jpg does not exist"),
    (["a.png", "a.jpg"], "rename one")])
def test_images_that_cannot_be_drawn_are_named(tmp_path, names, expected):
    (tmp_path / "empty").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(BadInput, match=expected):
        find_images([tmp_path / name for name in names])
