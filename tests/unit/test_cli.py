"""What every script says and returns in the same way."""

import argparse
import errno
import signal

import pytest
import torch
from torch.distributed import TCPStore

from common import cli
from common.cli import SaveEvery, image_size, note, number, one_line, picture_file, reports_errors
from common.errors import BadImage, BadInput, Interrupted, TrainingStopped


@pytest.mark.parametrize("error, code, lines", [
    (BadInput("x is missing", ["a", "b"]), 2, ["error: x is missing", "  a", "  b"]),
    (BadImage("x.jpg: not an image"), 2, ["error: x.jpg: not an image"]),
    (TrainingStopped("the loss is not finite"), 3, ["error: the loss is not finite"]),
    (Interrupted("stopped by SIGTERM", signal.SIGTERM), 143, ["stopped by SIGTERM"]),
    (Interrupted("stopped by SIGINT", signal.SIGINT), 130, ["stopped by SIGINT"]),
    (KeyboardInterrupt(), 130, ["interrupted"]),
    (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, ["error: No space left on device: out/x"]),
    (OSError("strange"), 2, ["error: strange"]),
    (torch.OutOfMemoryError("CUDA out of memory."), 2,
     ["error: the GPU's memory is full: pass a smaller --batch-size, or --device cpu"]),
    (torch.distributed.DistBackendError("broken"), 3, ["error: another process of this run has failed"]),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] closed"), 3,
     ["error: another process of this run has failed"]),
    (BadInput("a\nname\r"), 2, ["error: a\\nname\\r"])])
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, lines):
    @reports_errors
    def main(argv=None):
        raise error

    assert main([]) == code and capsys.readouterr().err.splitlines() == lines


def test_other_errors_are_tracebacks_and_success_is_zero():
    assert reports_errors(lambda argv: None)([]) == 0 and reports_errors(lambda argv: 1)([]) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        reports_errors(lambda argv: (_ for _ in ()).throw(RuntimeError("a bug")))([])


def test_numbers_have_bounds_in_words():
    parse = number(float, above=0, high=1)
    assert parse("0.5") == 0.5 and parse("1") == 1
    for text in ("0", "1.5", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not more than 0 and at most 1"):
            parse(text)
    assert number(int, low=2)("2") == 2 and number(int).__name__ == "whole number"
    with pytest.raises(ValueError):
        number(int)("2.5")


def test_save_every_counts_steps_or_seconds():
    steps, seconds = SaveEvery("3"), SaveEvery("1.5s")
    assert [steps.due(n, 99) for n in (2, 3, 4)] == [False, True, True] and str(seconds) == "1.5s"
    assert [seconds.due(99, s) for s in (1, 1.5, 2)] == [False, True, True]
    for text in ("0", "0s", "x", "1.5"):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            SaveEvery(text)


def test_sizes_and_pictures():
    assert image_size("384") == (384, 384) and image_size("224x336") == (224, 336)
    with pytest.raises(argparse.ArgumentTypeError):
        image_size("1x2x3")
    assert picture_file("a/b.PDF").name == "b.PDF"
    with pytest.raises(argparse.ArgumentTypeError, match="must end in .png, .pdf or .svg"):
        picture_file("f.gif")


def test_notes_are_one_line_of_the_first_rank(capsys, monkeypatch):
    note("a\nb")
    monkeypatch.setenv("RANK", "1")
    note("c")
    assert capsys.readouterr().err == "note: a\\nb\n" and one_line("\r") == "\\r"


def test_what_one_rank_says_for_all_is_said_again_after_a_restart(monkeypatch):
    """torchrun's store counts on from attempt to attempt; over several machines the counts may differ."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    for restart in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        assert [cli.is_first_rank_to("save") for _ in range(2)] == [True, False]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert cli.attempt() == 0
