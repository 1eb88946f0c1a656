"""p2_eval.py on drawn scenes, with a captioner of random weights."""

import json
import shutil

import pytest
from PIL import Image

import p2_eval
from datasets import scenes
from interpret.captions import pointing_game
from interpret.grounding import pointing_table
from models import decoding
from models.catr import open_captioner
from models.tokenizer import Tokenizer
from tests.helpers.captioner import write_captioner


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set", 1, 6, seed=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_captioner(tmp_path_factory.mktemp("captioner") / "best.pt")


@pytest.fixture
def evaluate(checkpoint):
    """The exit code of the script on a folder."""
    return lambda folder, *arguments: p2_eval.main(
        ["--data", str(folder), "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, arguments)])


@pytest.fixture
def odd(data, tmp_path):
    """A copy of the scenes that a test may change."""
    return shutil.copytree(data, tmp_path / "odd")


def write_caption(folder, caption):
    file = folder / "annotations" / "captions_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] = caption
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("right", [True, False])
def test_the_score_of_true_and_of_wrong_captions(evaluate, checkpoint, data, tmp_path, capsys, monkeypatch,
                                                 right):
    """BLEU-4 and CIDEr themselves are compared with others in the tests of interpret."""
    true = json.loads((data / "annotations" / "captions_val.json").read_text())["annotations"]
    true = [annotation["caption"] for annotation in sorted(true, key=lambda a: f"{a['image_id']}.jpg")]
    captions = true if right else [true[0], *(f"two{text[text.index(' '):]} next" for text in true[1:])]
    tokenizer, left = Tokenizer(scenes.VOCABULARY), list(captions)
    monkeypatch.setattr(decoding, "search", lambda model, memory, *rest: [
        [*tokenizer.encode(left.pop(0)), tokenizer.end] for _ in memory.grids])
    result = tmp_path / "result.json"
    assert evaluate(data, "--json", result, "--batch-size", 4) == 0
    output, content = capsys.readouterr().out, json.loads(result.read_text())
    assert list(content) == ["exact", "bleu4", "cider", "photos", "pointing", "checkpoint_sha256", "captions"]
    assert content["exact"] == (1 if right else 1 / 6) and content["photos"] == 6
    assert (content["bleu4"] == pytest.approx(100)) == right and 0 < content["bleu4"]
    assert list(content["captions"].items()) == list(zip([f"{i}.jpg" for i in range(6)], captions))
    scores = f"exact {content['exact']:.1%} ({6 if right else 1}), BLEU-4 {content['bleu4']:.1f}, "
    scores += f"CIDEr {content['cider']:.2f}"
    assert f"6 captions: {scores}\n" in output

    rows = content["pointing"]  # the game is played with the true captions, whatever the captioner says
    assert rows["colour"]["tokens"] == rows["shape"]["tokens"] == 12 and rows["end"]["tokens"] == 6
    by_phrase = [row["tokens"] for name, row in rows.items() if name.startswith("article of")]
    assert rows["article"]["tokens"] == sum(by_phrase)
    model, tokenizer = open_captioner(checkpoint)
    photos = [Image.open(data / "val" / f"{i}.jpg") for i in range(6)]
    masks = [data / "masks" / "val" / f"{i}.png" for i in range(6)]
    memory = decoding.encode(model, photos)
    at_once = pointing_table(pointing_game(model, tokenizer, memory, photos, true, masks, -1))
    assert {name: pytest.approx(row, abs=1e-4) for name, row in at_once.items()} == rows
    printed = next(line for line in output.splitlines() if line.startswith("colour")).split()
    assert printed == ["colour", "12", *(f"{rows['colour'][key]:.1%}" for key in
                                         ("hit", "chance", "mass", "area", "elsewhere"))]


def test_without_masks_there_is_no_pointing_game(evaluate, odd, tmp_path, capsys):
    shutil.rmtree(odd / "masks")
    assert evaluate(odd, "--json", tmp_path / "result.json", "--max-tokens", 3) == 0
    assert "word class" not in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["pointing"] == {}


@pytest.mark.parametrize("caption", ["a red star " * 40, "a red \ud83d star", "an unknown elephant"])
def test_captions_that_are_long_or_strange_are_scored_all_the_same(evaluate, odd, capsys, caption):
    write_caption(odd, caption)
    assert evaluate(odd, "--max-tokens", 3) == 0 and "6 captions" in capsys.readouterr().out


def test_captions_in_another_language_are_refused(evaluate, odd, capsys):
    file = odd / "annotations" / "captions_val.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["caption"] = "แมวนั่งบนเสื่อ."
    file.write_text(json.dumps(content))
    assert evaluate(odd) == 2
    assert f"error: 6 of 6 words in the captions of {odd / 'val'} (100.0%)" in capsys.readouterr().err
    content["annotations"][0]["caption"] = "a red star " * 9
    file.write_text(json.dumps(content))
    assert evaluate(odd, "--max-tokens", 3) == 0 and "note: 5 of 32 words" in capsys.readouterr().err


def test_unknown_words_are_not_taken_for_one_another(evaluate, odd, capsys, monkeypatch):
    write_caption(odd, "a zebra")
    unknown = [scenes.VOCABULARY.index(token) for token in ("a", "[UNK]", "[SEP]")]
    monkeypatch.setattr(decoding, "search", lambda model, memory, *rest: [unknown] * len(memory.grids))
    assert evaluate(odd) == 0 and "exact 0.0%" in capsys.readouterr().out


@pytest.mark.parametrize("damage, expected", [
    (lambda mask: Image.new("L", (9, 9)).save(mask), "masks must fit"),
    (lambda mask: mask.unlink(), "0.png does not exist"),
])
def test_a_bad_mask_is_named(evaluate, odd, capsys, damage, expected):
    damage(odd / "masks" / "val" / "0.png")
    assert evaluate(odd, "--max-tokens", 3) == 2 and expected in capsys.readouterr().err


def test_a_damaged_photo_and_a_damaged_checkpoint_are_named(evaluate, odd, tmp_path, capsys):
    photo = odd / "val" / "0.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    assert evaluate(odd, "--max-tokens", 3) == 2 and "1 file of 6" in capsys.readouterr().err
    (tmp_path / "damaged.pt").write_text("x")
    assert evaluate(odd, "--checkpoint", tmp_path / "damaged.pt") == 2
    assert "damaged.pt is not a weights file" in capsys.readouterr().err
