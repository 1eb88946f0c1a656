"""What interpret.captions says of photos, with a captioner of random weights."""

import copy

import numpy as np
import pytest
from PIL import Image

from common.errors import BadInput
from datasets import scenes
from datasets.masks import patch_cover
from interpret import captions
from models import catr, decoding
from p2_caption_viz import get_args_parser, given_caption
from tests.helpers.captioner import write_captioner

TEXT = "two red squares above a blue cross"
TOKENS = ["two", "red", "square", "##s", "above", "a", "blue", "cross", "[SEP]"]
WORDS = [[0], [1], [2, 3], [4], [5], [6], [7], [8]]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """(model, tokenizer) with three decoder layers."""
    path = tmp_path_factory.mktemp("captioner") / "best.pt"
    return catr.open_captioner(write_captioner(path, decoder_layers=3))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The paths of three scenes of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("one", (90, 60)), ("two", (40, 64)), ("zwei", (64, 40))):
        image, _, _ = scenes.draw_scene(np.random.default_rng(0))
        Image.fromarray(image).resize(size).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def forced(captioner, photos):
    """The teacher-forced pass of TEXT for the first photo."""
    model, tokenizer = captioner
    ids = [*tokenizer.encode(TEXT), tokenizer.end]
    (_, _, forced), = captions.captioned(model, tokenizer, photos[:1], 1, 9, 1, ids)
    return forced


@pytest.mark.parametrize("given", [False, True])
def test_each_photo_has_its_caption_whatever_the_batch(captioner, photos, given):
    model, tokenizer = copy.deepcopy(captioner[0]), captioner[1]
    for layer in model.transformer.decoder.layers:  # softer maps: sharp ones magnify how a batch rounds
        layer.multihead_attn.in_proj_weight.data.mul_(0.5)
    ids = [*tokenizer.encode(TEXT), tokenizer.end] if given else None
    batched = list(captions.captioned(model, tokenizer, photos, 2, 4, 2, ids))
    assert [path for path, _, _ in batched] == photos
    for path, photo, forced in batched:
        assert np.array_equal(photo, Image.open(path))
        memory = decoding.encode(model, [Image.open(path)])
        expected = ids or decoding.search(model, memory, tokenizer, 4, 2)[0]
        alone = decoding.teacher_force(model, memory, [expected], tokenizer)[0]
        assert forced.ids == expected
        np.testing.assert_allclose(forced.attention, alone.attention, atol=1e-5)


def test_a_token_has_its_map_and_its_probability(captioner, forced):
    metadata, arrays, panels = captions.describe(forced, captioner[1], 1, "one.png", (0, 1, 2, 3))
    maps, titles, probabilities = panels
    assert list(metadata) == ["caption", "tokens", "token_ids", "log_probs", "grid", "photo", "box"]
    assert metadata["caption"] == TEXT and metadata["tokens"] == TOKENS
    assert metadata["token_ids"] == forced.ids
    assert metadata["log_probs"] == forced.log_probs.tolist() and metadata["grid"] == [6, 8]
    assert (metadata["photo"], metadata["box"]) == ("one.png", (0, 1, 2, 3))
    expected = forced.attention[1].mean(0).numpy()
    assert list(arrays) == ["attention"] and np.array_equal(arrays["attention"], expected)
    assert arrays["attention"].dtype == np.float32 and arrays["attention"].shape == (9, 6, 8)
    np.testing.assert_allclose(arrays["attention"].sum((1, 2)), 1, atol=1e-5)
    assert np.array_equal(maps, expected) and titles == [*TOKENS[:-1], "[end]"]
    assert probabilities == pytest.approx(np.exp(metadata["log_probs"]))


def test_all_layers_can_be_had(captioner, forced):
    _, arrays, _ = captions.describe(forced, captioner[1], 1, "", (), every_layer=True)
    assert np.array_equal(arrays["attention_all"], forced.attention.mean(1))
    assert arrays["attention_all"].shape[:2] == (3, 9)


def test_word_pieces_can_be_merged(captioner, forced):
    metadata, arrays, panels = captions.describe(forced, captioner[1], -1, "", (), words=True)
    maps, titles, probabilities = panels
    assert [word["tokens"] for word in metadata["words"]] == WORDS
    assert [word["word"] for word in metadata["words"]] == ["two", "red", "squares", *TOKENS[4:]]
    assert titles == ["two", "red", "squares", *TOKENS[4:-1], "[end]"]
    assert arrays["attention"].shape[0] == 9 and np.array_equal(maps, arrays["attention_words"])
    assert maps.dtype == np.float32
    for pieces, word, cells, probability in zip(WORDS, metadata["words"], maps, probabilities, strict=True):
        np.testing.assert_allclose(cells, arrays["attention"][pieces].mean(0), atol=1e-6)
        assert word["log_prob"] == pytest.approx(sum(metadata["log_probs"][i] for i in pieces), rel=1e-5)
        assert np.log(probability) == pytest.approx(word["log_prob"], rel=1e-4)


def test_a_caption_may_have_no_words(captioner, photos):
    model, tokenizer = captioner
    (_, _, forced), = captions.captioned(model, tokenizer, photos[:1], 1, 9, 1, [tokenizer.end])
    metadata, arrays, (_, titles, _) = captions.describe(forced, tokenizer, -1, "", (), words=True)
    assert metadata["caption"] == "" and metadata["tokens"] == ["[SEP]"] and titles == ["[end]"]
    assert arrays["attention"].shape == (1, 6, 8)


@pytest.mark.parametrize("arguments, expected", [
    (["a.png", "--max-tokens", "0"], "--max-tokens"), (["a.png", "--beam", "0"], "--beam"),
    (["a.png", "--batch-size", "0"], "--batch-size"), ([], "IMAGES"),
    (["a.png", "--caption", "a", "--beam", "2"], "not allowed with")])
def test_arguments_are_checked(capsys, arguments, expected):
    with pytest.raises(SystemExit, match="2"):
        get_args_parser().parse_args(["--output-dir", "out", *arguments])
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("text, expected", [
    ("", "--caption is empty"), (" \t", "--caption is empty"),
    (40 * "a ", "--caption has 41 tokens, with the end")])
def test_a_given_caption_must_fit(captioner, text, expected):
    with pytest.raises(BadInput, match=expected):
        given_caption(text, captioner[1], captioner[0].config)


def test_unknown_words_of_a_given_caption_are_named(captioner, capsys):
    model, tokenizer = captioner
    ids = given_caption("a shiny red Star, shiny", tokenizer, model.config)
    assert tokenizer.tokens(ids) == ["a", "[UNK]", "red", "star", "[UNK]", "[UNK]", "[SEP]"]
    assert capsys.readouterr().err == "note: --caption: not in the vocabulary, shown as [UNK]: shiny, ,\n"
    given_caption(39 * "a ", tokenizer, model.config)
    assert not capsys.readouterr().err


def test_the_pointing_game_compares_each_token_with_its_own_group(captioner, tmp_path):
    model, tokenizer = captioner
    rng = np.random.default_rng(0)
    sizes, masks = [(90, 60), (40, 64)], [tmp_path / "one.png", tmp_path / "two.png"]
    photos = [Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8)) for size in sizes]
    groups = [rng.integers(0, 3, size[::-1], np.uint8) for size in sizes]
    for path, mask in zip(masks, groups):
        Image.fromarray(mask).save(path)
    memory = decoding.encode(model, photos)
    pointings = captions.pointing_game(model, tokenizer, memory, photos, [TEXT, "a red star"], masks, 1)
    assert [word_class for word_class, _ in pointings] == [
        "number", "colour", "shape", "plural", "relation", "article", "article of the second", "colour",
        "shape", "end", "article", "article of the first", "colour", "shape", "end"]
    ids = [tokenizer.caption(text, 40) for text in (TEXT, "a red star")]
    passes = decoding.teacher_force(model, memory, ids, tokenizer)
    for i, token, group, (_, pointing) in ((0, 1, 1, pointings[1]), (0, 7, 2, pointings[8]),
                                           (1, 2, 1, pointings[13])):
        cells = passes[i].attention[1].mean(0)[token]
        box = catr.grid_box(sizes[i], cells.shape, model.config)
        mass, elsewhere = ((cells.numpy() * patch_cover(groups[i] == each, box, cells.shape)).sum()
                           for each in (group, 3 - group))
        assert pointing.mass == pytest.approx(mass) and pointing.elsewhere == pytest.approx(elsewhere)
