"""The images that a script draws figures of, and the names of the figures."""

import unicodedata

import pytest
from PIL import Image

from common.errors import BadInput
from datasets.photos import find_photos, refuse_to_overwrite


def test_no_output_may_take_the_place_of_an_input(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    paths = find_photos([tmp_path]).values()
    assert list(paths) == [tmp_path / "a.png"]
    refuse_to_overwrite(tmp_path, ("json", "npz"), ["a"], paths)
    with pytest.raises(BadInput, match="would overwrite a.png"):
        refuse_to_overwrite(tmp_path / ".", ("json", "png"), ["a"], paths)


def test_figures_of_a_folder_keep_its_subfolders(tmp_path):
    paths = [tmp_path / "val" / folder / name for folder in "01" for name in ("001.jpg", "a.b.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    photos = find_photos([tmp_path / "val", tmp_path / "val" / "1" / "001.jpg"])
    assert list(photos) == ["0/001", "0/a.b", "1/001", "1/a.b", "001"]
    assert list(photos.values()) == [*paths, paths[2]]
    refuse_to_overwrite(tmp_path / "val", ("png", "npz"), ["0/001"], photos.values())
    with pytest.raises(BadInput, match="would overwrite a.b.png"):
        refuse_to_overwrite(tmp_path / "val", ("png", "npz"), photos, photos.values())
    for form in ("NFC", "NFD"):
        (tmp_path / "val" / "0" / unicodedata.normalize(form, f"Köter.{form}")).write_bytes(b"x")
    with pytest.raises(BadInput, match="would have one figure"):
        find_photos([tmp_path / "val"])


def test_figures_of_an_earlier_call_are_no_photos_and_photos_are_no_figures(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "made").mkdir()
    for name in ("a.npz", "a.json", "made/c.png"):
        (tmp_path / name).write_text("x")
    photos = find_photos([tmp_path], [tmp_path / "made"])
    assert photos == {"a": tmp_path / "a.jpg", "b": tmp_path / "b.png"}
    (tmp_path / "b.npz").write_text("x")  # what it is of is unknown: the photo may be b.png
    with pytest.raises(BadInput, match="b.npz and .*b.png would have one figure"):
        find_photos([tmp_path], [tmp_path / "made"])


@pytest.mark.parametrize("names, expected", [
    (["empty"], "holds no images"), (["missing.jpg"], "missing.jpg does not exist"),
    (["a.png", "a.jpg"], "rename one")])
def test_images_that_cannot_be_drawn_are_named(tmp_path, names, expected):
    (tmp_path / "empty").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(BadInput, match=expected):
        find_photos([tmp_path / name for name in names])
