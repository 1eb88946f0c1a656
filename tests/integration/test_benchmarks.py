"""The table of benchmarks in small, and what it measures in processes."""

import contextlib
import json
import os
import sys

import pytest
import torch

import p1_eval
import p1_train
from benchmarks import __main__ as table
from benchmarks import evaluation, memory, rows, starting, training
from benchmarks.rows import in_new_process, peak_mib
from engine.device import default_precision

SCRIPTS = {"p1_eval.py": p1_eval, "p1_train.py": p1_train}


def in_this_process(function, *args):
    """In place of `in_new_process`: a process that imports torch takes seconds, and so does a script."""
    if function is peak_mib:
        script, *flags = args
        SCRIPTS[script].get_args_parser().parse_args([str(flag) for flag in flags])
        return 1.0, None
    with contextlib.redirect_stdout(sys.stderr):
        return function(*args)


@pytest.mark.slow
def test_the_table_in_small(shapes, tmp_path, monkeypatch, capsys):
    (tmp_path / "pets").symlink_to(shapes)
    monkeypatch.setattr(evaluation, "REAL_DATA", str(tmp_path))
    monkeypatch.setattr(rows, "in_new_process", in_this_process)
    monkeypatch.setattr(training, "in_new_process", in_this_process)
    file = tmp_path / "new" / "rows.json"
    assert table.main(["--small", "--repeats", "1", "--json", str(file)]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    written = json.loads(file.read_text())
    expected = 15 + (default_precision(torch.device("cpu")) == "bf16")  # a step in both precisions
    assert len(written) == expected
    assert all(line.startswith(row["what"]) for line, row in zip(lines, written, strict=True))
    for row in written:
        met = row["value"] >= row["goal"] if row["op"] == ">=" else row["value"] <= row["goal"]
        assert row["value"] > 0 and row["met"] == met


def test_a_part_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit) as error:
        table.main(["captions", "nothing"])
    assert error.value.code == 2
    assert "no part nothing: choose from training" in capsys.readouterr().err


def test_what_a_part_needs_is_checked_before_the_first_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(starting, "PAGE", tmp_path / "index.html")
    monkeypatch.setattr(starting, "ROOT", tmp_path)
    for part, chromium, missing in (
            ("page", "chromium", f"{tmp_path}/index.html"), ("page", None, "Chromium: install"),
            ("starting", None, f"{tmp_path}/.venv, with which demo.sh is timed")):
        monkeypatch.setattr(starting, "CHROMIUM", chromium)
        assert table.main(["training", part]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: there is no {missing}")


def test_a_call_in_a_new_process_returns_its_value_or_fails():
    assert in_new_process(os.getpid) != os.getpid()
    assert in_new_process(print, "what a script prints is no part of the value") is None
    assert in_new_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        in_new_process(divmod, 7, 0)


def test_peaks_of_memory_are_those_of_the_script(tmp_path):
    """Also where the process that asks has held more."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nx = bytearray(b'x' * int(sys.argv[1]) * 2**20)\n")
    (little, _), (much, _) = (in_new_process(peak_mib, script, size) for size in (0, 100))
    assert 95 < much - little < 220, "the bytes and a copy of them"
    assert little < 40


def test_the_demo_is_timed_up_to_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "ROOT", tmp_path)
    for folder in (".venv", "common"):
        (tmp_path / folder).mkdir()
    (tmp_path / "common" / "setup.sh").write_text("touch .venv/current\n")
    (tmp_path / "demo.sh").write_text(
        "sleep 0.3; test -f .venv/current && echo 'epoch 1/2, loss=2.303'; sleep 60\n")
    assert 0.3 < starting.demo_seconds(tmp_path / "copy") < 20
    (tmp_path / "demo.sh").write_text("echo no; exit 2\n")
    with pytest.raises(OSError):
        starting.demo_seconds(tmp_path / "another")


@pytest.mark.slow
def test_the_memory_of_a_step_is_what_a_process_takes():
    """MemTracker's account of fake tensors against the kernel's, beyond what the process held before."""
    setting = "test_vit", 160, 64, False, "fp32"
    assert in_new_process(memory.measure, *setting) == pytest.approx(memory.estimate(*setting), rel=0.15)
