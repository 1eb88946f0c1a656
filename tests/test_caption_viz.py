import json
import shlex

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import p2_caption_viz
from common.errors import BadInput
from datasets import decode, scenes
from datasets.photos import find_images, refuse_to_overwrite
from models import catr, decoding
from models.tokenizer import Tokenizer
from plots import captions

TEXT = "two red squares above a blue cross"
TOKENS = ["two", "red", "square", "##s", "above", "a", "blue", "cross", "[SEP]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small captioner of three decoder layers with random weights, which carries its vocabulary."""
    torch.manual_seed(0)
    config = catr.Config(**{**vars(catr.small_config(len(scenes.VOCABULARY))), "decoder_layers": 3})
    model = catr.CATR(config)
    for layer in model.transformer["decoder"].layers:  # maps that differ from token to token
        torch.nn.init.normal_(layer.multihead_attn.in_proj_weight, std=0.5)
    path = tmp_path_factory.mktemp("captioner") / "best.pt"
    torch.save({**catr.checkpoint_fields(config, scenes.VOCABULARY), "settings": {}, "state_dict": model.state_dict()},
               path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two scenes of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("one", (90, 60)), ("two", (40, 64))):
        image, _, _ = scenes.draw_scene(np.random.default_rng(0))
        Image.fromarray(image).resize(size).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def draw(checkpoint, photos, tmp_path):
    """Run the script and return what it wrote: {stem: (its JSON, its arrays)}."""

    def call(*arguments):
        output = tmp_path / "new"
        assert p2_caption_viz.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--output-dir", str(output),
                                    "--device", "cpu"]) == 0
        return {path.stem: (json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz"))))
                for path in sorted(output.glob("*.json"))}

    return call


def readings(checkpoint, photos, text=None, max_tokens=5, beam=1):
    """What `captioning` says of each photo by itself."""
    model, tokenizer = catr.open_captioner(checkpoint)
    for path in sorted(photos.iterdir()):
        with torch.no_grad():
            memory = model.encode([catr.preprocess(decode.load_image(path), model.config)])
        found = [[*tokenizer.encode(text), tokenizer.end]] if text else \
            decoding.search(model, memory, tokenizer, max_tokens, beam)
        yield path.stem, decoding.teacher_force(model, memory, found, tokenizer)[0]


@pytest.mark.parametrize("batch_size, beam", [(8, 1), (1, 3)])
def test_each_photo_has_its_picture_its_json_and_its_arrays(
        draw, checkpoint, photos, tmp_path, capsys, batch_size, beam):
    written = draw(photos, "--max-tokens", 5, "--batch-size", batch_size, "--beam", beam)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"{stem}.{end}" for stem in ("one", "two") for end in ("png", "json", "npz")}
    said = capsys.readouterr()
    for stem, reading in readings(checkpoint, photos, beam=beam):
        told, arrays = written[stem]
        assert list(told) == ["caption", "tokens", "token_ids", "log_probs", "grid", "photo", "box"]
        assert list(arrays) == ["attention"]
        assert told["token_ids"] == reading.ids
        assert told["tokens"] == [scenes.VOCABULARY[i] for i in reading.ids]
        np.testing.assert_allclose(told["log_probs"], reading.log_probs, atol=1e-4)
        attention = arrays["attention"]
        assert attention.dtype == np.float32 and attention.shape == (len(reading.ids), *told["grid"])
        np.testing.assert_allclose(attention.sum((1, 2)), 1, atol=1e-5)
        np.testing.assert_allclose(attention, reading.attention[-1].mean(0), atol=1e-5)
        assert f"{stem}: {told['caption'] or '(no words)'}\n" in said.out
        cut = reading.ids[-1] != scenes.VOCABULARY.index("[SEP]")
        assert (f"note: {stem}: the caption was cut after 5 tokens: raise --max-tokens\n" in said.err) == cut
    assert [written[stem][0]["grid"] for stem in ("one", "two")] == [[6, 8], [8, 5]]
    assert said.out.endswith(f"2 captions drawn to {tmp_path / 'new'}\n")


def test_a_given_caption_is_read_and_not_searched_for(draw, checkpoint, photos, drawn, capsys):
    written = draw(photos, "--caption", TEXT, "--all", "--heads", "--layer", 1)
    for stem, reading in readings(checkpoint, photos, TEXT):
        told, arrays = written[stem]
        assert told["tokens"] == TOKENS and told["caption"] == TEXT
        np.testing.assert_allclose(told["log_probs"], reading.log_probs, atol=1e-4)
        np.testing.assert_allclose(arrays["attention"], reading.attention[1].mean(0), atol=1e-5)
        np.testing.assert_allclose(arrays["attention_all"], reading.attention.mean(1), atol=1e-5)
        np.testing.assert_allclose(arrays["attention_per_head"], reading.attention[1], atol=1e-5)
        assert arrays["attention_all"].shape[:2] == (3, 9) and arrays["attention_per_head"].shape[:2] == (4, 9)
    texts = shown(drawn[0])
    assert texts[:2] == ["one, for a given caption", TEXT] and "layer 1 of the decoder" in texts[2].replace("\n", " ")
    assert texts[3::2] == [*TOKENS[:-1], "[end]"]
    probabilities = np.exp(written["one"][0]["log_probs"])
    assert texts[4::2] == [f"p = {p:.2f}" if p >= 0.005 else "p < 0.01" for p in probabilities]
    assert not capsys.readouterr().err


def shown(figure):
    """The texts of a figure, in the order in which they were written."""
    return [text.get_text() for text in figure.texts]


def test_word_pieces_can_be_merged(draw, photos, drawn):
    told, arrays = draw(photos / "one.png", "--caption", TEXT, "--merge-wordpieces")["one"]
    words = [[0], [1], [2, 3], [4], [5], [6], [7], [8]]
    assert [word["tokens"] for word in told["words"]] == words
    assert [word["word"] for word in told["words"]] == ["two", "red", "squares", "above", "a", "blue", "cross", "[SEP]"]
    assert arrays["attention"].shape[0] == 9 and arrays["attention_words"].dtype == np.float32
    for pieces, word, attention in zip(words, told["words"], arrays["attention_words"], strict=True):
        np.testing.assert_allclose(attention, arrays["attention"][pieces].mean(0), atol=1e-6)
        assert word["log_prob"] == pytest.approx(sum(told["log_probs"][i] for i in pieces), rel=1e-5)
    assert shown(drawn[0])[3::2] == ["two", "red", "squares", "above", "a", "blue", "cross", "[end]"]


def test_remarks_name_unknown_words_and_the_limit(draw, photos, capsys, monkeypatch):
    told, _ = draw(photos / "one.png", "--caption", "a shiny red Star, shiny")["one"]
    assert told["tokens"] == ["a", "[UNK]", "red", "star", "[UNK]", "[UNK]", "[SEP]"]
    assert capsys.readouterr().err == "note: --caption: not in the vocabulary, shown as [UNK]: shiny, ,\n"
    monkeypatch.setattr(decoding, "search", lambda model, memory, tokenizer, *_: [40 * [tokenizer.unknown]])
    draw(photos / "one.png")
    assert capsys.readouterr().err == "note: one: the caption was cut after 40 tokens, the captioner's most\n"


def test_a_caption_without_words_is_drawn(draw, photos, capsys, monkeypatch):
    monkeypatch.setattr(decoding, "search", lambda model, memory, tokenizer, *_: [[tokenizer.end]])
    told, arrays = draw(photos / "one.png")["one"]
    assert told["caption"] == "" and told["tokens"] == ["[SEP]"] and arrays["attention"].shape == (1, 6, 8)
    assert "one: (no words)\n" in capsys.readouterr().out


def test_the_downloads_are_the_default_where_they_fit(checkpoint, photos, tmp_path, monkeypatch, capsys):
    """The downloaded vocabulary must not get in the way of a checkpoint that carries its own."""
    (tmp_path / "vocab.txt").write_text("\n".join(reversed(scenes.VOCABULARY)))
    monkeypatch.setattr(p2_caption_viz, "VOCAB", tmp_path / "vocab.txt")
    monkeypatch.setattr(p2_caption_viz, "CHECKPOINT", tmp_path / "catr.pth")
    arguments = [str(photos / "one.png"), "--output-dir", str(tmp_path / "out"), "--device", "cpu", "--max-tokens", "2"]
    assert p2_caption_viz.main([*arguments, "--checkpoint", str(checkpoint)]) == 0

    torch.save({"model": torch.load(checkpoint, weights_only=True)["state_dict"]}, tmp_path / "catr.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(scenes.VOCABULARY))
    config = catr.open_captioner(checkpoint)[0].config
    monkeypatch.setattr(catr, "Config", lambda: config)
    assert p2_caption_viz.main(arguments) == 0
    (tmp_path / "vocab.txt").unlink()
    capsys.readouterr()
    assert p2_caption_viz.main(arguments) == 2 and "--vocab" in capsys.readouterr().err


@pytest.fixture
def places(checkpoint, photos, run, shapes, tmp_path, monkeypatch):
    """Paths that the cases below name in braces, most of them bad."""
    monkeypatch.setattr(p2_caption_viz, "CHECKPOINT", tmp_path / "downloads" / "catr.pth")
    monkeypatch.setattr(p2_caption_viz, "VOCAB", tmp_path / "downloads" / "vocab.txt")
    for name in ("empty", "bad", "thin"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad" / "cut.jpg").write_bytes((shapes / "val" / "0_0.jpg").read_bytes()[:600])
    Image.new("RGB", (900, 1)).save(tmp_path / "thin" / "line.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "one.jpg")
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({"model": weights["state_dict"]}, tmp_path / "catr.pth")
    broken = {key: value * float("nan") for key, value in weights["state_dict"].items()}
    torch.save({**weights, "state_dict": broken}, tmp_path / "nan.pt")
    huge = {key: value * 1e30 for key, value in weights["state_dict"].items()}
    torch.save({**weights, "state_dict": huge}, tmp_path / "huge.pt")
    (tmp_path / "short.txt").write_text("\n".join(scenes.VOCABULARY[:9]))
    (tmp_path / "words.txt").write_text("\n".join([*scenes.VOCABULARY[:-1], "##es"]))
    (tmp_path / "other.txt").write_text("\n".join([*scenes.VOCABULARY[:-1], "word"]))
    return {"tmp": tmp_path, "out": tmp_path / "out", "best": checkpoint, "photos": photos, "vit": run / "best.pt"}


@pytest.mark.parametrize("arguments, expected", [
    ("{photos}", "downloads/catr.pth does not exist: put CATR's weights there, or pass --checkpoint FILE"),
    ("{photos} --checkpoint {tmp}/missing.pt", "missing.pt does not exist"),
    ("{photos} --checkpoint {tmp}/file", "not a weights file"),
    ("{photos} --checkpoint {vit}", "is not a captioner: it is a classifier, test_vit"),
    ("{photos} --checkpoint {tmp}/nan.pt", "not finite"),
    ("{photos} --checkpoint {tmp}/huge.pt", "gives values that are not finite"),
    ("{photos} --checkpoint {tmp}/catr.pth", "carries no vocabulary"),
    ("{photos} --checkpoint {tmp}/catr.pth --vocab {tmp}/short.txt", "short.txt has 9 tokens and"),
    ("{photos} --checkpoint {tmp}/catr.pth --vocab {tmp}/words.txt", "does not fit the captioner"),
    ("{photos} --checkpoint {best} --vocab {tmp}/other.txt", "leave --vocab out"),
    ("{photos} --checkpoint {best} --vocab {tmp}/missing.txt", "missing.txt does not exist"),
    ("{photos} --checkpoint {best} --layer 3", "--layer 3: the decoder has 3, counted from 0"),
    ("{photos} --checkpoint {best} --layer -4", "--layer -4: the decoder has 3, counted from 0"),
    ("{photos} --checkpoint {best} --max-tokens 41", "--max-tokens 41: this captioner has positions for 40"),
    ("{photos} --checkpoint {best} --max-tokens 0", "--max-tokens"),
    ("{photos} --checkpoint {best} --beam 0", "--beam"),
    ("{photos} --checkpoint {best} --batch-size 0", "--batch-size"),
    ("{photos} --checkpoint {best} --caption ''", "--caption is empty"),
    ("{photos} --checkpoint {best} --caption ' \t'", "--caption is empty"),
    ("{photos} --checkpoint {best} --caption '" + 40 * "a " + "'", "--caption has 41 tokens, with the end"),
    ("{photos} --checkpoint {best} --caption a --beam 2", "not allowed with"),
    ("{tmp}/empty --checkpoint {best}", "holds no images"),
    ("{tmp}/missing.jpg --checkpoint {best}", "missing.jpg does not exist"),
    ("{photos} {tmp}/bad --checkpoint {best}", "1 file of 3 cannot be used"),
    ("{photos} {tmp}/thin --checkpoint {best} --batch-size 1", "1 file of 3 cannot be used"),
    ("{photos} {tmp}/one.jpg --checkpoint {best}", "rename one"),
    ("{photos}/one.png --checkpoint {best} --output-dir {photos}", "would overwrite one.png"),
    ("{photos}/one.png --checkpoint {best} --output-dir {tmp}/file", "file"),
    ("--checkpoint {best}", "IMAGES"),
])
def test_bad_input_is_one_error_line_and_exit_code_2(places, capsys, arguments, expected):
    before = {path.name: path.read_bytes() for path in places["photos"].iterdir()}
    arguments = [argument.format(**places) for argument in shlex.split(arguments)]
    try:
        code = p2_caption_viz.main(["--output-dir", str(places["out"]), "--device", "cpu", *arguments])
    except SystemExit as exit:
        code = exit.code
    errors = capsys.readouterr().err.splitlines()
    said = [line for line in errors if not line.startswith("  ")]
    assert code == 2 and len(said) == 1 and said[0].startswith("error: ") and expected in said[0], errors
    assert not list(places["out"].glob("*")), "nothing is left behind"
    assert before == {path.name: path.read_bytes() for path in places["photos"].iterdir()}


def test_no_output_may_take_the_place_of_an_input(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    paths = find_images([tmp_path])
    assert paths == [tmp_path / "a.png"]
    refuse_to_overwrite(tmp_path, ("json", "npz"), ["a"], paths)
    with pytest.raises(BadInput, match="would overwrite a.png"):
        refuse_to_overwrite(tmp_path / ".", ("json", "png"), ["a"], paths)


# The figure --------------------------------------------------------------------------------------------------------


LONG = ["a", "antidisestablishmentarianism", "##s", 40 * "W", "$x_1^2$", "зонтик", "[end]"]


@pytest.mark.parametrize("size", [(1000, 200), (300, 300), (200, 1000)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 23, 40])
def test_no_text_overlaps_another_or_leaves_the_page(drawn, tmp_path, monkeypatch, count, size):
    monkeypatch.setattr(captions, "save", lambda figure, *args, **kwargs: drawn.append(figure))  # slow, and tested below
    width, height = size
    grid = [max(1, side // 60) for side in (height, width)]
    titles = [LONG[i % len(LONG)] for i in range(count)]
    captions.draw_caption(np.full((height, width, 3), 90, np.uint8), (-8, -8, width, height),
                          np.full((count, *grid), 0.0123), titles, [0.5] * count, " ".join(titles), "name_" * 60,
                          "cross-attention of a layer", tmp_path / "f.png")
    figure, = drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    ticks = [tick for axes in figure.axes for tick in axes.get_xticklabels() if tick.get_text()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in [*figure.texts, *ticks]]
    boxes += [("panel", axes.get_window_extent(renderer)) for axes in figure.axes]
    assert len(ticks) >= 2 and len(figure.texts) == 3 + 2 * count and len(figure.axes) == count + 2
    page = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1, f"{text} leaves the page"
        assert page.y0 <= box.y0 and box.y1 <= page.y1, f"{text} leaves the page"
        for other, its in boxes[i + 1:]:
            assert not box.overlaps(its), f"{text} touches {other}"
    for axes in figure.axes[2:]:
        assert axes.bbox.height / axes.bbox.width == pytest.approx(height / width, rel=1e-3)


@pytest.mark.parametrize("size, grid", [((300, 200), (6, 8)), ((120, 300), (8, 4)), ((1400, 600), (4, 8))], ids=str)
def test_the_brightest_spot_is_the_centre_of_the_hot_cell(drawn, tmp_path, size, grid):
    """The cell's centre is pixel 16 i of the photo as the model sees it, whose longer side is 128."""
    config = catr.small_config(9)
    row, column = 1, grid[1] - 2
    maps = np.zeros((2, *grid), np.float32)
    maps[0, row, column] = 1
    maps[1, 0, 0] = 0.25
    width, height = size
    captions.draw_caption(np.full((height, width, 3), 128, np.uint8), catr.grid_box(size, grid, config), maps,
                          ["hot", "cool"], [0.5, 0.5], "", "", "", tmp_path / "f.png")
    picture = np.asarray(Image.open(tmp_path / "f.png").convert("RGB")).astype(int)
    small = catr.resized(size, config.longer_side)
    panels = [axes for axes in drawn[0].axes if len(axes.images) == 2]
    for axes, (i, j) in zip(panels, ((row, column), (0, 0)), strict=True):
        x, y = ((16 * index + 0.5) * full / seen for index, full, seen in zip((j, i), size, small))
        x0, y0, x1, y1 = (round(value) for value in axes.bbox.extents)
        inside = picture[picture.shape[0] - y1 + 2:picture.shape[0] - y0 - 2, x0 + 2:x1 - 2]  # without the frame
        expected = y / height * axes.bbox.height - 2, x / width * axes.bbox.width - 2
        spot = inside[tuple(max(0, min(int(at), side - 1)) for at, side in zip(expected, inside.shape))]
        if (i, j) == (row, column):
            green = inside[:, :, 1]  # grows with the attention
            at = np.argwhere(green >= green.max() - 1).mean(0)
            assert np.abs(at - expected).max() < 0.1 * 16 * axes.bbox.width / small[0], "in the middle of its cell"
            assert spot[0] > 220 and spot[1] > 200, "the scale's top"
        else:
            assert spot[1] < 110 and np.ptp(spot) > 30, "half way up the scale that both share"
        far = inside[-1, 0 if (i, j) == (row, column) else -1]
        assert np.abs(far - 128).max() < 3, "no attention: the photo as it is"


def test_a_map_is_interpolated_between_the_centres_and_constant_beyond():
    attention = np.array([[0.0, 2.0], [4.0, 6.0]])
    fine = captions.upsampled(attention, (-2, -2, 6, 6), (8, 6), (6, 8))  # centres at 0 and 4 in both directions
    assert fine[0].tolist() == pytest.approx([0.25 + 0.5, 0.75 + 0.5, 1.25 + 0.5, 1.75 + 0.5, *4 * [2.5]])
    assert fine[:, 7].tolist() == pytest.approx([2.5, 3.5, 4.5, 5.5, 6, 6])
    assert captions.upsampled(np.ones((1, 1)), (-8, -8, 8, 8), (30, 20), (2, 3)).tolist() == [[1] * 3] * 2


@pytest.mark.real_data
def test_the_courses_photos_at_full_size(real_data, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": catr.CATR(catr.Config()).state_dict()}, tmp_path / "catr.pth")
    vocab = real_data / "bert-base-uncased" / "vocab.txt"
    assert p2_caption_viz.main([str(real_data / "p2_images"), "--output-dir", str(tmp_path / "out"), "--checkpoint",
                                str(tmp_path / "catr.pth"), "--vocab", str(vocab), "--max-tokens", "6", "--all",
                                "--heads", "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{stem}.{end}" for stem in ("girl", "ski", "umbrella") for end in ("png", "json", "npz")}
    tokenizer = Tokenizer.from_file(vocab)
    for stem in ("girl", "ski", "umbrella"):
        told = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
        count, (height, width) = len(told["tokens"]), told["grid"]
        assert max(height, width) == 19 and height != width and told["tokens"] == tokenizer.tokens(told["token_ids"])
        with np.load(tmp_path / "out" / f"{stem}.npz") as arrays:
            assert arrays["attention"].shape == (count, height, width)
            assert arrays["attention_all"].shape == (6, count, height, width)
            assert arrays["attention_per_head"].shape == (8, count, height, width)
            np.testing.assert_allclose(arrays["attention"].sum((1, 2)), 1, atol=1e-5)
            np.testing.assert_allclose(arrays["attention_all"][-1], arrays["attention_per_head"].mean(0), atol=1e-6)
