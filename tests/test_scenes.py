import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from common.errors import BadInput
from datasets import scenes
from datasets.captions import read_captions
from models.tokenizer import Tokenizer

PHRASE = rf"(a|two) ({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})(e?s)?"
CAPTION = re.compile(rf"{PHRASE} (next to|above) {PHRASE}")


def drawn(count, seed=3):
    return [scenes.draw_scene(np.random.default_rng([seed, i])) for i in range(count)]


def parts(mask, group):
    """The number of separate regions of a group, by flooding, and its pixels' mean (x, y)."""
    left = {tuple(p) for p in np.argwhere(mask == group)}
    center = np.mean([(x, y) for y, x in left], 0)
    regions = 0
    while left:
        queue, size = [left.pop()], 1
        while queue:
            y, x = queue.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            size += len(near)
            queue += near
        regions += size > 8  # crumbs of an anti-aliased tip
    return regions, center


def test_a_caption_says_what_the_picture_and_its_mask_show():
    for image, caption, mask in drawn(24):
        found = CAPTION.fullmatch(caption)
        assert found and image.shape == (*mask.shape, 3) and set(np.unique(mask)) == {0, 1, 2}, caption
        (one, at_one), (two, at_two) = parts(mask, 1), parts(mask, 2)
        assert [one, two] == [{"a": 1, "two": 2}[found[i]] for i in (1, 6)], caption
        assert all((found[i + 3] is None) == (found[i] == "a") for i in (1, 6))
        assert found[2] != found[7] and found[3] != found[8], "the groups differ in colour and in shape"
        apart = at_two - at_one
        axis = 0 if found[5] == "next to" else 1
        assert apart[axis] > abs(apart[1 - axis]), "left before right, upper before lower"
        for group, colour in ((1, found[2]), (2, found[7])):
            seen = np.median(image[mask == group], 0)
            distance = {name: np.abs(seen - rgb).sum() for name, rgb in scenes.COLOURS.items()}
            assert min(distance, key=distance.get) == colour


def test_all_words_occur_and_plurals_split_into_two_tokens():
    tokenizer = Tokenizer(scenes.VOCABULARY)
    captions = [caption for _, caption, _ in drawn(60)]
    tokens = [tokenizer.tokens(tokenizer.encode(caption)) for caption in captions]
    assert Counter(sum(tokens, [])).keys() == set(scenes.VOCABULARY) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    assert all(tokenizer.text(tokenizer.encode(caption)) == caption for caption in captions)
    assert tokenizer.tokens(tokenizer.encode("two red crosses above a blue star")) == [
        "two", "red", "cross", "##es", "above", "a", "blue", "star"]


def test_each_token_has_a_class_and_an_object():
    assert scenes.roles(["two", "red", "cross", "##es", "next", "to", "a", "blue", "star", "[SEP]"]) == [
        ("number", 1), ("colour", 1), ("shape", 1), ("plural", 1), ("relation", 0), ("relation", 0),
        ("article", 2), ("colour", 2), ("shape", 2), ("end", 0)]


def test_the_set_is_written_in_the_layout_of_coco_and_drawn_once(tmp_path):
    sets = [scenes.write_scenes(tmp_path / name, 6, 4, seed) for name, seed in (("one", 0), ("same", 0), ("other", 1))]
    read = [[read_captions(folder, split) for split in ("train", "val")] for folder in sets]
    assert [len(part.names) for part in read[0]] == [6, 4]
    assert read[0][0].captions == read[1][0].captions != read[2][0].captions
    assert not set(map(str, read[0][0].captions)) & set(map(str, read[0][1].captions)), "val is another draw"
    for part, split in zip(read[0], ("train", "val")):
        for name, (caption,) in zip(part.names, part.captions):
            image = Image.open(part.root / name)
            mask = Image.open(sets[0] / "masks" / split / name.replace("jpg", "png"))
            assert image.size == mask.size and CAPTION.fullmatch(caption)
    (sets[0] / "train" / "mark").touch()
    scenes.write_scenes(sets[0], 6, 4, 0)
    assert (sets[0] / "train" / "mark").exists()
    assert Tokenizer.from_file(sets[0] / "vocab.txt").vocabulary == scenes.VOCABULARY
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(BadInput, match="name another folder"):
        scenes.write_scenes(tmp_path / "thesis", 1, 1)


def test_the_command_line_writes_it_too(tmp_path, capsys):
    assert scenes.main(["--output", str(tmp_path / "set"), "--train", "2", "--val", "0"]) == 0
    content = json.loads((tmp_path / "set" / "annotations" / "captions_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.jpg", "1.jpg"] and "2 scenes" in capsys.readouterr().out
