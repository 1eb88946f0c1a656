"""A catalogue of what people and disks do to input, over all the scripts.

The answer is right, or one line that says what to do. More cases, of single flags and files, are in
test_command_line.py; files that mean harm are in test_unsafe_files.py.
"""

import csv
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common.files
from datasets import decode
from tests.helpers.documented import SCRIPTS
from tests.helpers.training import TRAIN

# 96 x 72 pixels, each of them six times
TWICE = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)


@pytest.fixture(scope="module")
def photos(shapes, tmp_path_factory):
    """Four photos in `train/`, of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "train").mkdir()
    for name in ("0_0.jpg", "0_1.jpg", "1_0.jpg", "1_1.jpg"):
        shutil.copy(shapes / "train" / name, folder / "train")
    return folder


@pytest.fixture
def call(run, best, photos, captioners, tmp_path, capsys):
    """Run a script in this process, on cheap models: call(script, flags and paths) -> (exit code, stderr).

    What is not named is taken from data that is in order; `out` is where everything goes.
    """
    out = tmp_path / "out"

    def call(script, *arguments, images_in=photos / "train", data=None, checkpoint=None, out=out):
        classifier, captioner = checkpoint or best, checkpoint or captioners / "captioner.pt"
        data = data or (captioners / "coco" if script.startswith("p2") else photos)
        arguments = [str(argument) for argument in arguments]
        arguments = {
            "p1_train.py": lambda: ["--data", data, "--output", out, *TRAIN, "--epochs", 1, "--holdout", 0],
            "p1_eval.py": lambda: [images_in, out / "pred.csv", "--checkpoint", classifier,
                                   "--json", out / "result.json", "--workers", 0],
            "p1_viz_posembed.py": lambda: ["--checkpoint", classifier, "--output", out / "posembed.png"],
            "p1_viz_attn.py": lambda: [images_in, "--checkpoint", classifier, "--output-dir", out],
            "p1_viz_landscape.py": lambda: [classifier, "--data", data, "--output", out / "landscape.png"],
            "p1_export.py": lambda: ["--checkpoint", classifier, "--output-dir", out / "exported"],
            "p1_report.py": lambda: [run, "--output", out],
            "p2_train.py": lambda: ["--data", data, "--output", out, "--epochs", 1, "--workers", 0],
            "p2_eval.py": lambda: ["--data", data, "--checkpoint", captioner, "--json", out / "result.json"],
            "p2_caption_viz.py": lambda: [images_in, "--checkpoint", captioner, "--output-dir", out,
                                          "--max-tokens", 3],
        }[script]() + arguments
        try:
            code = SCRIPTS[script].main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        return code, capsys.readouterr().err.splitlines()

    call.out = out
    return call


def is_refused(answer, *words, exit_code=2):
    """One `error:` line (a list of files may follow) that holds the words."""
    code, lines = answer
    main = [line for line in lines if not line.startswith(("  ", "note: "))]
    return (code == exit_code and len(main) == 1 and main[0].startswith("error: ")
            and all(word in main[0] for word in words))


def leaves_nothing(call):
    return not call.out.exists() or not any(path.is_file() for path in call.out.rglob("*"))


# Images -----------------------------------------------------------------------------------------------


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(np.rot90(TWICE)).save(path, exif=exif)


def deep(path):
    """Grey values of 16 bits."""
    Image.fromarray(TWICE[..., 0].astype(np.uint16) * 256 + 7).save(path)


def moving(path):
    Image.fromarray(TWICE).save(path, save_all=True, append_images=[Image.new("RGB", (96, 72), "red")],
                                format="PNG")


def in_few_colours(path, transparent=False):
    image = Image.fromarray(TWICE).quantize(256)
    image.save(path, format="PNG", **({"transparency": bytes([255] * 256)} if transparent else {}))


def in_print_colours(path):
    bands = [*Image.fromarray(255 - TWICE).split(), Image.new("L", (96, 72))]
    Image.merge("CMYK", bands).save(path, format="TIFF")


def with_broken_exif(path):
    Image.fromarray(TWICE).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", format="PNG")


GREY = np.repeat(TWICE[..., :1], 3, 2)
USUAL = {  # how to write it, and the picture that it shows
    "photo.png": (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    "a_png_called.jpg": (lambda path: Image.fromarray(TWICE).save(path, format="PNG"), TWICE),
    "a_gif_called.jpg": (lambda path: Image.fromarray(GREY[..., 0]).save(path, format="GIF"), GREY),
    "a bmp with spaces.bmp": (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    "grey.png": (lambda path: Image.fromarray(GREY[..., 0]).save(path), GREY),
    "sixteen_bits.png": (deep, GREY), "turned.png": (turned, TWICE), "moving.png": (moving, TWICE),
    "palette.png": (in_few_colours, TWICE),
    "palette_and_alpha.png": (lambda path: in_few_colours(path, True), TWICE),
    "alpha.png": (lambda path: Image.fromarray(TWICE).convert("RGBA").save(path), TWICE),
    "cmyk.tiff": (in_print_colours, TWICE), "broken_exif.png": (with_broken_exif, TWICE),
    "without_ending": (lambda path: Image.fromarray(TWICE).save(path, format="PNG"), TWICE),
    "lossless.webp": (lambda path: Image.fromarray(TWICE).save(path, lossless=True), TWICE),
    "ein Gruß, 猫.png": (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    "-dash.png": (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    'quo"te.png': (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    "new\nline.png": (lambda path: Image.fromarray(TWICE).save(path), TWICE),
    "one_pixel.png": (lambda path: Image.new("RGB", (1, 1), "white").save(path),
                      np.full((1, 1, 3), 255, np.uint8)),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    for name, (write, _) in USUAL.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("name", USUAL)
def test_unusual_files_that_are_fine_show_what_they_show(usual, name):
    pixels, expected = np.asarray(decode.load_image(usual / name)), USUAL[name][1]
    tolerance = 60 if "palette" in name else 1
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("script", ["p1_eval.py", "p1_viz_attn.py"])
def test_scripts_take_them(call, usual, script):
    code, said = call(script, images_in=usual)
    assert code == 0 and all(line.startswith("note: ") for line in said)
    if script == "p1_eval.py":
        with open(call.out / "pred.csv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == ["filename", "label"] and [name for name, _ in rows] == sorted(USUAL)
        answers = dict(rows)
        copies = [name for name in USUAL if USUAL[name][1] is TWICE and "palette" not in name]
        assert len({answers[name] for name in copies}) == 1, "one picture"
        assert len({answers[name] for name in USUAL if USUAL[name][1] is GREY}) == 1
    else:
        assert {path.stem for path in call.out.glob("*.npz")} == {os.path.splitext(name)[0] for name in USUAL}


def test_training_takes_them(call, usual, tmp_path):
    for i, name in enumerate(USUAL):
        (tmp_path / "data" / "train" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(usual / name, tmp_path / "data" / "train" / str(i % 2) / name)
    assert call("p1_train.py", data=tmp_path / "data")[0] == 0 and (call.out / "best.pt").exists()


def cut(path):
    Image.fromarray(TWICE).save(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def claiming_a_gigapixel(path):
    sides = 2 * (50000).to_bytes(4, "little")
    path.write_bytes(b"BM" + bytes(12) + (40).to_bytes(4, "little") + sides + b"\1\0\x18\0" + bytes(24))


BAD = {  # how to write it, and what is said of it
    "0_empty.jpg": (lambda path: path.write_bytes(b""), "is empty"),
    "0_text.jpg": (lambda path: path.write_text("hello"), "not an image"),
    "0_cut.png": (cut, "truncated"),
    "0_cut.jpg": (cut, "truncated"),
    "0_gigapixel.bmp": (claiming_a_gigapixel, "exceeds limit"),
    "0_line.png": (lambda path: Image.new("RGB", (1, 10000)).save(path),
                   "1 x 10000 pixels: one side is over 100 times"),
    "0_float.tiff": (lambda path: Image.new("F", (4, 4)).save(path), "floating-point"),
    "0_32_bits.tiff": (lambda path: Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path),
                       "32-bit integer"),
    "0_zip.jpg": (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "not an image"),
    "0_link.jpg": (lambda path: path.symlink_to("gone.jpg"), "is a link to gone.jpg, which does not exist"),
    "0_pipe.jpg": (os.mkfifo, "is no file but a folder, pipe, socket or device"),
    "0_heic.jpg": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100)), "HEIC, which Pillow"),
    "0_film.jpg": (lambda path: path.write_bytes(b"\0\0\0\x14ftypqt  " + bytes(100)), "a video"),
    "0_lfs.jpg": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "0_page.jpg": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a web page"),
}


@pytest.fixture
def with_bad(photos, tmp_path):
    """A function that copies the photos and adds bad ones: their folder."""
    def add(*names):
        train = tmp_path / "data" / "train"
        shutil.copytree(photos / "train", train)
        for name in names:
            BAD[name][0](train / name)
        return tmp_path / "data"
    return add


@pytest.mark.parametrize("script", ["p1_train.py", "p1_eval.py", "p1_viz_attn.py", "p2_caption_viz.py"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(call, with_bad, script, name):
    data = with_bad(name)
    answer = call(script, images_in=data / "train", data=data)
    assert is_refused(answer, "1 file of 5", "cannot be used") and leaves_nothing(call)
    assert name in answer[1][-1] and BAD[name][1] in answer[1][-1]


@pytest.mark.parametrize("script", ["p1_train.py", "p1_eval.py"])
def test_bad_files_are_skipped_on_request(call, with_bad, script):
    data = with_bad(*BAD)
    code, said = call(script, "--skip-bad", images_in=data / "train", data=data)
    assert code == 0 and f"note: left out {len(BAD)} bad files: {', '.join(sorted(BAD))}" in said


@pytest.mark.parametrize("script", ["p2_train.py", "p2_eval.py"])
def test_photos_with_captions_that_are_missing_or_bad_are_skipped(call, captioners, tmp_path, script):
    data = shutil.copytree(captioners / "coco", tmp_path / "coco")
    for split in ("train", "val"):
        (data / split / "0.jpg").unlink()
    answer = call(script, data=data)
    assert is_refused(answer, "1 file of", "or pass --skip-bad") and "  0.jpg: No such file" in answer[1][1]
    cut(data / "train" / "1.jpg")
    training = script == "p2_train.py"
    code, said = call(script, "--skip-bad", *["--holdout", 0] * training, data=data)
    names = "0.jpg, 1.jpg" if training else "0.jpg"
    assert code == 0 and any(line.endswith(f": {names}") for line in said if "note: left out" in line)


# The same call twice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script, inside", [
    ("p1_eval.py", "."), ("p1_eval.py", "made"), ("p1_eval.py", "0"),
    ("p1_viz_attn.py", "."), ("p2_caption_viz.py", "made"), ("p2_caption_viz.py", "0")])
def test_what_a_call_writes_among_the_photos_is_no_photo_of_the_next(call, photos, tmp_path, script, inside):
    """Of photos in one folder, or in subfolders, of which `0` is written to."""
    folder = shutil.copytree(photos / "train", tmp_path / "photos" / ("1" if inside == "0" else ""))
    for name in ("0_1.jpg", "1_1.jpg"):
        (folder / name).unlink()
    out = (tmp_path / "photos" / inside).resolve()
    before, answers, written = set(folder.iterdir()), [], []
    for _ in range(2):
        answers.append(call(script, images_in=tmp_path / "photos", out=out))
        new = sorted(set(out.rglob("*.*")) - before)
        # .npz archives hold the time
        written.append([(path, path.suffix == ".npz" or path.read_bytes()) for path in new])
    assert answers[0] == answers[1] and answers[0][0] == 0 and written[0] == written[1] != []


# Folders ----------------------------------------------------------------------------------------------


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(TWICE).save(path)


def looping(folder):
    picture(folder / "0" / "a.png")
    (folder / "0" / "again").symlink_to(folder, target_is_directory=True)


def pointing_to_itself(folder):
    picture(folder / "0_1.png")
    (folder / "0_2.png").symlink_to(folder / "0_2.png")


def mixed(folder):
    picture(folder / "0_1.png"), picture(folder / "1" / "a.png")


def same_number(folder):
    picture(folder / "1_1.png"), picture(folder / "01_1.png"), picture(folder / "2_1.png")


def one_class(folder):
    picture(folder / "0_1.png"), picture(folder / "0_2.png")


def unlabelled(folder):
    picture(folder / "0_1.png"), picture(folder / "photo.png")


def nested(folder):
    picture(folder / "0" / "1" / "a.png")


def only_hidden(folder):
    picture(folder / ".hidden.png"), (folder / "Thumbs.db").write_bytes(b"x")
    picture(folder / "__MACOSX" / "0" / "._a.png"), picture(folder / "@eaDir" / "0_1.png" / "thumb.png")


@pytest.mark.parametrize(("make", "words"), [
    (looping, "is nested too deep"), (pointing_to_itself, "1 file of 2"),
    (mixed, "mixes two layouts"),
    (same_number, "are the same number"), (one_class, "holds one class, 0: training needs two"),
    (unlabelled, "1 file of 2"), (nested, "is nested too deep"), (only_hidden, "holds no images"),
])
def test_folders_that_cannot_be_trained_on(call, tmp_path, make, words):
    (tmp_path / "data" / "train").mkdir(parents=True)
    make(tmp_path / "data" / "train")
    assert is_refused(call("p1_train.py", data=tmp_path / "data"), words) and leaves_nothing(call)


@pytest.mark.parametrize("script", ["p1_eval.py", "p1_viz_attn.py", "p2_caption_viz.py"])
@pytest.mark.parametrize(("make", "words"), [
    (looping, "again"), (pointing_to_itself, "0_2.png"), (nested, "nested too deep"),
    (only_hidden, "holds no images"),
])
def test_folders_that_cannot_be_read(call, tmp_path, script, make, words):
    (tmp_path / "photos").mkdir()
    make(tmp_path / "photos")
    code, said = call(script, images_in=tmp_path / "photos")
    assert code == 2 and said[0].startswith("error: ") and words in "\n".join(said) and leaves_nothing(call)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("script", ["p1_train.py", "p1_eval.py", "p1_viz_attn.py", "p2_caption_viz.py"])
def test_a_folder_that_may_not_be_read(call, tmp_path, script):
    picture(tmp_path / "data" / "train" / "0_1.png")
    (tmp_path / "data" / "train").chmod(0)
    answer = call(script, images_in=tmp_path / "data" / "train", data=tmp_path / "data")
    assert is_refused(answer, "Permission denied")


def test_one_image_is_evaluated_and_drawn(call, tmp_path):
    picture(tmp_path / "photos" / "0_1.png")
    for script in ("p1_eval.py", "p1_viz_attn.py", "p2_caption_viz.py"):
        assert call(script, images_in=tmp_path / "photos")[0] == 0


def test_three_thousand_bad_files_are_counted_and_not_listed(call, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    for i in range(3000):
        os.close(os.open(tmp_path / "data" / "train" / f"{i % 37}_{i}.jpg", os.O_CREAT))
    code, lines = call("p1_train.py", data=tmp_path / "data")
    assert is_refused((code, lines), "3000 files of 3000")
    assert len(lines) == 52 and lines[-1] == "  and 2950 more"


# Checkpoints ------------------------------------------------------------------------------------------


def damaged(content, how):
    return {"empty": b"", "cut": content[: len(content) // 2], "without its end": content[:-20],
            "altered": content[:3000] + bytes([content[3000] ^ 255]) + content[3001:],
            "text": b"weights"}[how]


@pytest.mark.parametrize("script", ["p1_eval.py", "p1_viz_posembed.py", "p1_viz_attn.py",
                                    "p1_viz_landscape.py", "p2_eval.py", "p2_caption_viz.py"])
@pytest.mark.parametrize("how", ["empty", "cut", "without its end", "altered", "text"])
def test_damaged_checkpoints(call, run, captioners, tmp_path, script, how):
    whole = (captioners / "captioner.pt") if script.startswith("p2") else run / "best.pt"
    (tmp_path / "bad.pt").write_bytes(damaged(whole.read_bytes(), how))
    assert is_refused(call(script, checkpoint=tmp_path / "bad.pt"), "bad.pt")
    assert leaves_nothing(call)


@pytest.mark.parametrize("script", ["p1_eval.py", "p1_viz_posembed.py", "p1_viz_attn.py",
                                    "p1_viz_landscape.py"])
def test_weights_that_are_not_numbers(call, run, tmp_path, script):
    saved = torch.load(run / "best.pt", weights_only=True)
    weights = {key: value * float("nan") for key, value in saved["state_dict"].items()}
    torch.save({**saved, "state_dict": weights}, tmp_path / "nan.pt")
    assert is_refused(call(script, checkpoint=tmp_path / "nan.pt"), "nan.pt", "not finite")
    assert leaves_nothing(call)


# Flags ------------------------------------------------------------------------------------------------


def numeric_flags():
    for script, module in SCRIPTS.items():
        for action in module.get_args_parser()._actions:
            if getattr(action.type, "__name__", "") in ("number", "whole number", "int", "float",
                                                             "block_number"):
                yield script, action.option_strings[-1]


@pytest.mark.parametrize(("script", "flag"), numeric_flags())
def test_numbers_that_are_none(script, flag, capsys):
    far_below = () if flag in ("--layer", "--block") else ("-99999",)  # those count from the end, too
    for value in ("x", "", "nan", "inf", "-inf", "1e999", "1" + 5000 * "0", "0x10", "1,5", "½", *far_below):
        with pytest.raises(SystemExit) as exit:
            SCRIPTS[script].get_args_parser().parse_args([f"{flag}={value}"])
        lines = capsys.readouterr().err.splitlines()
        assert exit.value.code == 2 and len(lines) == 1, lines
        assert lines[0].startswith("error: ") and flag in lines[0], lines


# Output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - {"p1_report.py", "report_page.py"}))
def test_an_output_that_cannot_be_made(call, script):
    """/proc takes no files, not even from root."""
    assert is_refused(call(script, out=Path("/proc/nowhere")), "/proc/nowhere")


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - {"p1_report.py", "p1_viz_landscape.py",
                                                          "report_page.py"}))
def test_a_full_disk_leaves_nothing_half_written(call, script, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(common.files.os, "fsync", full)
    answer = call(script)
    assert is_refused(answer, "No space left on device", str(call.out)) and leaves_nothing(call)


@pytest.mark.parametrize("script", ["p1_eval.py", "p1_viz_attn.py", "p2_caption_viz.py"])
def test_an_interrupted_call_leaves_whole_files_and_can_be_repeated(call, script, monkeypatch):
    whole, load, loaded = call(script), decode.load_image, []
    assert whole[0] == 0
    expected = {path.name: path.read_bytes() for path in call.out.iterdir()}
    shutil.rmtree(call.out)

    def interrupted(path):
        loaded.append(path)
        if len(loaded) == 7:  # the figures have begun
            raise KeyboardInterrupt
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "load_image", interrupted)
        code, said = call(script)
    if script == "p1_eval.py":  # it loads 4
        assert code == 0
    else:
        assert code == 130 and said == ["interrupted"]
    assert all(expected[path.name] == path.read_bytes() for path in call.out.glob("*"))
    assert call(script)[0] == 0
    assert {path.name: path.read_bytes() for path in call.out.iterdir()} == expected
