"""p2_caption_viz.py on captioners with random weights."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import p2_caption_viz
from datasets import scenes
from models import catr, decoding
from models.tokenizer import Tokenizer
from plots import drawing
from tests.helpers.captioner import write_captioner

TEXT = "two red squares above a blue cross"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_captioner(tmp_path_factory.mktemp("captioner") / "best.pt", decoder_layers=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two scenes of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("one", (90, 60)), ("two", (40, 64))):
        image, _, _ = scenes.draw_scene(np.random.default_rng(0))
        Image.fromarray(image).resize(size).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def draw(checkpoint, tmp_path):
    """Run the script and return what it wrote: {stem: (its JSON, its arrays)}."""

    def call(*arguments):
        output = tmp_path / "new"
        assert p2_caption_viz.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--output-dir",
                                    str(output), "--device", "cpu"]) == 0
        return {path.stem: (json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz"))))
                for path in sorted(output.glob("*.json"))}

    return call


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures are not drawn, which takes a second each: a list of (path, arguments of draw_caption)."""
    calls = []
    monkeypatch.setattr(drawing.Drawing, "draw",
                        lambda self, path, function, *args: calls.append((str(path), args)))
    return calls


def passes(checkpoint, photos, text=None):
    """(stem, teacher-forced pass) of each photo by itself, for a text or else the caption by beam search."""
    model, tokenizer = catr.open_captioner(checkpoint)
    for path in sorted(photos.iterdir()):
        memory = decoding.encode(model, [Image.open(path)])
        ids = [[*tokenizer.encode(text), tokenizer.end]] if text else \
            decoding.search(model, memory, tokenizer, 5, 3)
        yield path.stem, decoding.teacher_force(model, memory, ids, tokenizer)[0]


def test_photos_in_subfolders_keep_them(checkpoint, photos, tmp_path, not_drawn):
    for folder in "ab":
        shutil.copytree(photos, tmp_path / "photos" / folder)
    assert p2_caption_viz.main([str(tmp_path / "photos"), "--checkpoint", str(checkpoint), "--output-dir",
                                str(tmp_path / "out"), "--device", "cpu", "--max-tokens", "2"]) == 0
    names = [f"{folder}/{stem}" for folder in "ab" for stem in ("one", "two")]
    assert [path for path, _ in not_drawn] == [str(tmp_path / "out" / f"{name}.png") for name in names]
    for name in names:
        metadata = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert metadata["photo"] == str(tmp_path / "photos" / f"{name}.png")
        assert (tmp_path / "out" / f"{name}.npz").exists()


def test_each_photo_has_its_picture_its_json_and_its_arrays(draw, checkpoint, photos, tmp_path, capsys):
    written = draw(photos, "--max-tokens", 5, "--beam", 3)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        f"{stem}.{end}" for stem in ("one", "two") for end in ("png", "json", "npz")}
    output = capsys.readouterr()
    for stem, forced in passes(checkpoint, photos):
        metadata, arrays = written[stem]
        assert list(metadata) == ["caption", "tokens", "token_ids", "log_probs", "grid", "photo", "box"]
        assert list(arrays) == ["attention"] and metadata["token_ids"] == forced.ids
        assert metadata["tokens"] == [scenes.VOCABULARY[i] for i in forced.ids]
        assert metadata["photo"] == str((photos / f"{stem}.png").resolve())
        np.testing.assert_allclose(metadata["log_probs"], forced.log_probs, atol=1e-4)
        assert arrays["attention"].dtype == np.float32
        assert arrays["attention"].shape == (len(forced.ids), *metadata["grid"])
        np.testing.assert_allclose(arrays["attention"], forced.attention[-1].mean(0), atol=1e-5)
        assert f"{stem}: {metadata['caption'] or '(no words)'}\n" in output.out
        cut = forced.ids[-1] != scenes.VOCABULARY.index("[SEP]")
        note = f"note: {stem}: the caption was cut after 5 tokens: raise --max-tokens\n"
        assert (note in output.err) == cut
    assert [written[stem][0]["grid"] for stem in ("one", "two")] == [[6, 8], [8, 5]]
    assert output.out.endswith(f"2 captions drawn to {tmp_path / 'new'}\n")


def test_a_given_caption_is_teacher_forced(draw, checkpoint, photos, not_drawn, capsys):
    written = draw(photos, "--caption", TEXT, "--all", "--layer", 1, "--batch-size", 1)
    for (path, call), (stem, forced) in zip(not_drawn, passes(checkpoint, photos, TEXT), strict=True):
        metadata, arrays = written[stem]
        assert metadata["caption"] == TEXT and metadata["token_ids"] == forced.ids
        np.testing.assert_allclose(metadata["log_probs"], forced.log_probs, atol=1e-4)
        np.testing.assert_allclose(arrays["attention"], forced.attention[1].mean(0), atol=1e-5)
        np.testing.assert_allclose(arrays["attention_all"], forced.attention.mean(1), atol=1e-5)
        np.testing.assert_allclose(arrays["attention"], forced.attention[1].mean(0), atol=1e-5)
        photo, box, maps, titles, probabilities, caption, heading, label = call
        assert path.endswith(f"new/{stem}.png") and np.array_equal(photo, Image.open(photos / f"{stem}.png"))
        assert list(box) == metadata["box"] and np.array_equal(maps, arrays["attention"])
        assert titles == [*metadata["tokens"][:-1], "[end]"]
        assert probabilities == pytest.approx(np.exp(metadata["log_probs"]))
        assert (caption, heading) == (TEXT, f"{stem}, for a given caption")
        assert label == "cross-attention of layer 1 of the decoder, counted from 0; mean over its 4 heads"
    assert not capsys.readouterr().err


def test_word_pieces_can_be_merged(draw, photos, not_drawn):
    metadata, arrays = draw(photos / "one.png", "--caption", TEXT, "--merge-wordpieces")["one"]
    (_, (_, _, maps, titles, *_)), = not_drawn
    assert [word["word"] for word in metadata["words"]] == [*TEXT.split(), "[SEP]"]
    assert titles == [*TEXT.split(), "[end]"] and np.array_equal(maps, arrays["attention_words"])


@pytest.mark.parametrize("tokens, output", [
    (40 * ["[UNK]"], "note: one: the caption was cut after 40 tokens, the captioner's most\n"),
    (["[SEP]"], "one: (no words)\n")])
def test_what_is_odd_about_a_caption_is_printed(draw, photos, not_drawn, capsys, monkeypatch, tokens, output):
    ids = [scenes.VOCABULARY.index(token) for token in tokens]
    monkeypatch.setattr(decoding, "search", lambda *arguments: [ids])
    draw(photos / "one.png")
    assert output in "".join(capsys.readouterr())


def test_the_downloads_are_the_default_where_they_fit(checkpoint, photos, not_drawn, tmp_path,
                                                        monkeypatch, capsys):
    """The downloaded vocabulary must not get in the way of a checkpoint that carries its own."""
    (tmp_path / "vocab.txt").write_text("\n".join(reversed(scenes.VOCABULARY)))
    monkeypatch.setattr(p2_caption_viz, "VOCAB", tmp_path / "vocab.txt")
    monkeypatch.setattr(p2_caption_viz, "CHECKPOINT", tmp_path / "catr.pth")
    arguments = [str(photos / "one.png"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
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
def places(checkpoint, photos, tmp_path, monkeypatch):
    """Paths that the cases below name in braces, most of them bad."""
    monkeypatch.setattr(p2_caption_viz, "CHECKPOINT", tmp_path / "downloads" / "catr.pth")
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.png").write_bytes((photos / "one.png").read_bytes()[:600])
    saved = torch.load(checkpoint, weights_only=True)
    saved["state_dict"] = {key: value * 1e30 for key, value in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "huge.pt")
    return {"tmp": tmp_path, "out": tmp_path / "out", "best": checkpoint, "photos": photos}


@pytest.mark.parametrize("arguments, expected", [
    ("{photos}", "downloads/catr.pth does not exist: put CATR's weights there, or pass --checkpoint FILE"),
    ("{photos} --checkpoint {tmp}/huge.pt", "gives values that are not finite"),
    ("{photos} --checkpoint {tmp}/file", "not a weights file"),
    ("{photos} --checkpoint {best} --vocab {tmp}/missing.txt", "missing.txt does not exist"),
    ("{photos} --checkpoint {best} --layer -4", "--layer -4: the decoder has 3, counted from 0"),
    ("{photos} --checkpoint {best} --max-tokens 41", "--max-tokens 41: this captioner has positions for 40"),
    ("{photos} --checkpoint {best} --caption ''", "--caption is empty"),
    ("{photos} {tmp}/bad --checkpoint {best}", "1 file of 3 cannot be used"),
    ("{photos}/one.png --checkpoint {best} --output-dir {photos}", "would overwrite one.png"),
    ("{photos}/one.png --checkpoint {best} --output-dir {tmp}/file", "file"),
])
def test_bad_input_is_one_error_line_and_exit_code_2(places, capsys, arguments, expected):
    before = {path.name: path.read_bytes() for path in places["photos"].iterdir()}
    arguments = [argument.format(**places) for argument in shlex.split(arguments)]
    assert p2_caption_viz.main(["--output-dir", str(places["out"]), "--device", "cpu", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and expected in errors[0]
    assert not list(places["out"].glob("*")), "nothing is left behind"
    assert before == {path.name: path.read_bytes() for path in places["photos"].iterdir()}


@pytest.mark.real_data
def test_the_courses_photos_at_full_size(real_data, tmp_path, capsys):
    torch.manual_seed(0)
    torch.save({"model": catr.CATR(catr.Config()).state_dict()}, tmp_path / "catr.pth")
    vocab = real_data / "bert-base-uncased" / "vocab.txt"
    arguments = [real_data / "p2_images", "--output-dir", tmp_path / "out", "--vocab", vocab, "--checkpoint",
                 tmp_path / "catr.pth", "--max-tokens", 6, "--all", "--device", "cpu"]
    assert p2_caption_viz.main(list(map(str, arguments))) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{stem}.{end}" for stem in ("girl", "ski", "umbrella") for end in ("png", "json", "npz")}
    tokenizer = Tokenizer.from_file(vocab)
    for stem in ("girl", "ski", "umbrella"):
        metadata = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
        count, (height, width) = len(metadata["tokens"]), metadata["grid"]
        assert max(height, width) == 19 and height != width
        assert metadata["tokens"] == tokenizer.tokens(metadata["token_ids"])
        with np.load(tmp_path / "out" / f"{stem}.npz") as arrays:
            assert arrays["attention"].shape == (count, height, width)
            assert arrays["attention_all"].shape == (6, count, height, width)
            np.testing.assert_allclose(arrays["attention"].sum((1, 2)), 1, atol=1e-5)
            np.testing.assert_allclose(arrays["attention"], arrays["attention_all"][-1], atol=1e-6)
