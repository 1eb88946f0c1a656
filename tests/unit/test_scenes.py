import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from datasets import scenes
from datasets.captions import read_captions
from models.tokenizer import Tokenizer

PHRASE = rf"(a|two) ({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})(e?s)?"
CAPTION = re.compile(rf"{PHRASE} (next to|above) {PHRASE}")


@pytest.fixture(scope="module")
def draws():
    return [scenes.draw_scene(np.random.default_rng([3, i])) for i in range(35)]


def parts(mask, group):
    """The number of separate regions of a group, and its pixels' mean (x, y)."""
    regions, _ = ndimage.label(mask == group, np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())[1:]
    return (sizes > 8).sum(), np.argwhere(mask == group).mean(0)[::-1]  # no crumbs of an anti-aliased tip


def test_a_caption_says_what_the_picture_and_its_mask_show(draws):
    for image, caption, mask in draws:
        words = CAPTION.fullmatch(caption)
        assert words and image.shape == (*mask.shape, 3) and set(np.unique(mask)) == {0, 1, 2}, caption
        (one, at_one), (two, at_two) = parts(mask, 1), parts(mask, 2)
        assert [one, two] == [{"a": 1, "two": 2}[words[i]] for i in (1, 6)], caption
        assert all((words[i + 3] is None) == (words[i] == "a") for i in (1, 6))
        assert words[2] != words[7] and words[3] != words[8], "the groups differ in colour and in shape"
        apart = at_two - at_one
        axis = 0 if words[5] == "next to" else 1
        assert apart[axis] > abs(apart[1 - axis]), "left before right, upper before lower"
        for group, colour in ((1, words[2]), (2, words[7])):
            median = np.median(image[mask == group], 0)
            distance = {name: np.abs(median - rgb).sum() for name, rgb in scenes.COLOURS.items()}
            assert min(distance, key=distance.get) == colour


def test_all_words_occur_and_plurals_split_into_two_tokens(draws):
    tokenizer = Tokenizer(scenes.VOCABULARY)
    captions = [caption for _, caption, _ in draws]
    tokens = [tokenizer.tokens(tokenizer.encode(caption)) for caption in captions]
    assert Counter(sum(tokens, [])).keys() == set(scenes.VOCABULARY) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    assert all(tokenizer.text(tokenizer.encode(caption)) == caption for caption in captions)
    assert tokenizer.tokens(tokenizer.encode("two red crosses above a blue star")) == [
        "two", "red", "cross", "##es", "above", "a", "blue", "star"]


def test_each_token_has_a_class_and_an_object():
    assert scenes.roles(["two", "red", "cross", "##es", "next", "to", "a", "blue", "star", "[SEP]"]) == [
        ("number", 1), ("colour", 1), ("shape", 1), ("plural", 1), ("relation", 0), ("relation", 0),
        ("article", 2), ("colour", 2), ("shape", 2), ("end", 0)]


def test_files_hold_the_draws_of_their_seeds_in_the_layout_of_coco(tmp_path):
    folder = scenes.write_scenes(tmp_path / "set", 4, 3, seed=5)
    captions = set()
    for split, number, count in (("train", 0, 4), ("val", 1, 3)):
        part = read_captions(folder, split)
        assert part.names == [f"{i}.jpg" for i in range(count)] and part.root == folder / split
        for i, (name, (caption,)) in enumerate(zip(part.names, part.captions)):
            image, expected, mask = scenes.draw_scene(np.random.default_rng([5, number, i]))
            assert caption == expected and CAPTION.fullmatch(caption)
            saved = np.asarray(Image.open(part.root / name))
            assert saved.shape == image.shape and np.abs(saved.astype(int) - image).mean() < 8  # JPEG
            assert np.array_equal(np.asarray(Image.open(folder / "masks" / split / f"{i}.png")), mask)
            captions.add(caption)
    assert len(captions) == 7, "val is another draw"
    assert Tokenizer.from_file(folder / "vocab.txt").vocabulary == scenes.VOCABULARY
    (folder / "train" / "mark").touch()
    scenes.write_scenes(folder, 4, 3, 5)
    assert (folder / "train" / "mark").exists(), "it is drawn once"


def test_the_demo_s_scenes_stay_what_they_are():
    """Results are compared across versions. By 1, since processors round sines differently."""
    image, caption, mask = scenes.draw_scene(np.random.default_rng([0, 0, 3]))
    assert caption == "two white crosses next to a yellow heart" and image.shape == (144, 144, 3)
    assert [abs((mask == group).sum() - area) <= 2 for group, area in ((1, 3583), (2, 1258))] == [True, True]
    row = [[76, 51, 53], [218, 244, 233], [75, 57, 47]]
    assert np.abs(image[50, ::50].astype(int) - row).max() <= 1
