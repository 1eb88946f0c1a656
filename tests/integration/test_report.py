"""p1_report.py: the files of a report, what is left out, and what is refused."""

import csv

import pytest
from PIL import Image

import p1_report
from tests.helpers.run_folders import right_of, write_mistakes, write_run

TEXTS = {"report.md", "table.md", "table.csv", "runs.csv", "per_class.csv"}
FIGURES = {"curves.png", "calibration.png", "hard_photos.png", "confusion_sam.png", "confused_sam.png",
           "confusion_b_x.png", "confused_b_x.png"}


def report(folder, *arguments, output="out"):
    return p1_report.main([*map(str, sorted(folder.glob("run*"))), "--output", str(folder / output),
                           *map(str, arguments)])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_has_all_files_and_links_them(tmp_path):
    photos = write_mistakes(tmp_path)
    assert report(tmp_path) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FIGURES | TEXTS
    text = (out / "report.md").read_text()
    assert all(f"]({name})" in text for name in FIGURES)
    assert (out / "table.md").read_text() in text
    assert [row["setting"] for row in rows(out / "table.csv")] == ["b $x$", "sam"]
    assert [row["b $x$"] for row in rows(out / "per_class.csv")] == ["0.375", "0.75", "1.0"]
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Settings", "What may be claimed", "Which differences exceed the noise",
                      "Adam against SAM",
                      "Curves", "Calibration", "Mistakes on photos/val"]
    assert "| SAM overfits less | these runs do not say | sam | b $x$ |" in text
    assert "| photo | true |" in text and "| beagle and pug | 3 | 8 |" in text

    photos.rename(tmp_path / "moved")
    assert report(tmp_path, "--images", tmp_path / "moved", output="again") == 0
    for name in ("hard_photos.png", "report.md"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_photos_that_are_gone_leave_their_figures_out(tmp_path, capsys):
    photos = write_mistakes(tmp_path)
    (photos / "1_4.jpg").unlink()
    assert report(tmp_path) == 0
    message, = capsys.readouterr().err.splitlines()
    assert message.startswith("note: hard_photos.png, confused_b_x.png, confused_sam.png are left out")
    assert str(photos) in message and "--images" in message
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == (FIGURES | TEXTS) - {"hard_photos.png", "confused_sam.png", "confused_b_x.png"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "hard_photos.png)" not in text
    assert "hard_photos.png is left out: its photos were not found.\n" in text


def test_settings_on_other_images_share_the_table_and_nothing_else(tmp_path):
    write_run(tmp_path / "run0", right_of(), recipe="tiny-1.toml", images=tmp_path / "drawn" / "val",
              targets=[(i + 1) % 3 for i in range(60)])
    write_run(tmp_path / "run1", right_of(), recipe="tiny-2.toml", lr=2e-4)
    write_run(tmp_path / "run2", right_of(), recipe="tiny-3.toml", sam=True, lr=2e-4)
    write_run(tmp_path / "run3", right_of(), recipe="tiny-4.toml", sam=True, lr=4e-4)
    assert report(tmp_path) == 0
    out = tmp_path / "out"
    assert [row["image_set"] for row in rows(out / "table.csv")] == ["drawn/val", *["photos/val"] * 3]
    assert rows(out / "per_class.csv")[0]["tiny-2"] == ""
    text = (out / "report.md").read_text()
    assert "| tiny-2 | tiny-3 | +0.0 ±" in text and "| tiny-1 | tiny-" not in text
    assert text.count("## Mistakes on ") == 2
    # tiny-1 and tiny-2 differ in the rate alone, too, but not on the same images
    assert "| vit_tiny_patch16_224, pretrained, SAM(adam), 4 epochs | 2e-04 |" in text
    assert "pretrained, adam, 4 epochs" not in text
    assert "| sam off / on, lr 2e-04 / 4e-04: no single one can be named as the cause |" in text
    assert Image.open(out / "learning_rates.png").width > 500


def test_figures_are_in_the_format_that_is_asked_for(tmp_path):
    write_mistakes(tmp_path)
    assert report(tmp_path, "--format", "pdf") == 0
    figures = {name.replace(".png", ".pdf") for name in FIGURES}
    assert {path.name for path in (tmp_path / "out").iterdir()} == figures | TEXTS
    text = (tmp_path / "out" / "report.md").read_text()
    for name in figures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"%PDF") and f"]({name})" in text


def test_hard_photos_of_several_sets_have_a_figure_each(tmp_path):
    write_mistakes(tmp_path / "one")
    write_mistakes(tmp_path / "two")
    runs = [tmp_path / "one" / "run2", write_run(tmp_path / "run3", right_of(0, total=9), lr=1.0)]
    for number in range(9):
        (tmp_path / "photos" / "val").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "val" / f"{number % 3}_{number}.jpg")
    assert p1_report.main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").glob("hard_photos*")}
    assert names == {"hard_photos_photos_val.png", "hard_photos_photos_val_2.png"}


def test_runs_that_are_left_out_are_named_in_a_note_and_in_the_report(tmp_path, capsys):
    write_run(tmp_path / "run0", right_of(total=9))
    (write_run(tmp_path / "run1", right_of(total=9), lr=2.0) / "eval.json").unlink()
    assert report(tmp_path) == 0
    output = capsys.readouterr()
    run = tmp_path / "run1"
    line = f"{run} was not evaluated: python p1_eval.py p1_data/val --checkpoint {run / 'best.pt'}"
    assert output.err == f"note: left out: {line}\n"
    assert output.out == f"1 runs of 1 settings: see {tmp_path / 'out' / 'report.md'}\n"
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"## Left out\n\n- {line}\n" in text
    assert "No mistake" in text and "confused_" not in text
    assert not list((tmp_path / "out").glob("confused_*"))
    assert len(rows(tmp_path / "out" / "table.csv")) == 1


def test_nothing_left_is_bad_input_and_nothing_is_written(tmp_path, capsys):
    (write_run(tmp_path / "run0", right_of(0)) / "eval.npz").unlink()
    assert report(tmp_path) == 2
    error, line = capsys.readouterr().err.splitlines()
    assert error.startswith("error: none of the runs can be used") and "p1_eval.py" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, problem", [
    (["--output", "{run}"], "holds a training run"),
    (["--output", "{run}/best.pt"], "is a file: name a folder"),
    (["--output", "{run}/out", "--images", "{run}/x"], "x does not exist: name the folder of photos"),
    (["--output", "{run}/out", "--images", "{run}/best.pt"], "best.pt is not a folder")])
def test_folders_that_are_no_use_are_refused(tmp_path, capsys, arguments, problem):
    run = write_run(tmp_path / "run0", right_of(0))
    assert p1_report.main([str(run), *(argument.format(run=run) for argument in arguments)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {arguments[-2]} ") and problem in line
