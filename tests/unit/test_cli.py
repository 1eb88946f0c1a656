"""What every script says and returns in the same way."""

import argparse
import errno
import io
import signal
import sys

import pytest
import torch

from common.cli import (
    ArgumentParser,
    ImageSize,
    SaveEvery,
    note,
    number,
    one_line,
    picture_file,
    reports_errors,
)
from common.errors import BadImage, BadInput, Interrupted, TrainingStopped

FULL = ("error: the GPU's memory is full: pass a smaller --batch-size (in training with a larger "
        "--accumulate, or --precision bf16), or --device cpu")
LOST = "error: another process of this run has failed"
AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # torch 2.8 and newer have the first


@pytest.mark.parametrize("error, code, lines", [
    (BadInput("x is missing", ["a", "b"]), 2, ["error: x is missing", "  a", "  b"]),
    (BadImage("x.jpg: not an image"), 2, ["error: x.jpg: not an image"]),
    (TrainingStopped("the loss is not finite"), 3, ["error: the loss is not finite"]),
    (Interrupted("stopped by SIGTERM", signal.SIGTERM), 143, ["stopped by SIGTERM"]),
    (Interrupted("stopped by SIGINT", signal.SIGINT), 130, ["stopped by SIGINT"]),
    (KeyboardInterrupt(), 130, ["interrupted"]),
    (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, ["error: No space left on device: out/x"]),
    (OSError("strange"), 2, ["error: strange"]),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, [FULL]),
    (AcceleratorError("CUDA error: out of memory\nSearch for"), 2, [FULL]),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 2, [FULL]),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 2, [FULL]),
    (AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for"), 2,
     ["error: another process has the GPU for itself: end it (nvidia-smi names it), or pass --device cpu"]),
    *((kind("CUDA error: uncorrectable ECC error encountered\nSearch for"), 2,
     ["error: the GPU or its driver has failed (uncorrectable ECC error encountered): where nvidia-smi fails "
      "as well, restart the machine; or pass --device cpu"]) for kind in (AcceleratorError, RuntimeError)),
    (torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nncclSystemError: System call failed."
        "\nLast error:\nError while creating shared memory segment /dev/shm/nccl-a, error: No space left\n"
        "Exception raised from create at NCCLUtils.cpp:77 (most recent call first):\nframe #0: f()"), 3,
     [LOST, "  Error while creating shared memory segment /dev/shm/nccl-a, error: No space left"]),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] closed"), 3,
     [LOST, "  [../third_party/gloo/gloo/transport/tcp/pair.cc:553] closed"]),
    (BadInput("a\nname\r"), 2, ["error: a\\nname\\r"])])
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, lines):
    @reports_errors
    def main(argv=None):
        raise error

    assert main([]) == code and capsys.readouterr().err.splitlines() == lines


def test_other_errors_are_tracebacks_and_success_is_zero():
    assert reports_errors(lambda argv: None)([]) == 0 and reports_errors(lambda argv: 1)([]) == 1
    for bug in (RuntimeError("a bug"), AcceleratorError("CUDA error: device-side assert: a bug"),
                RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling: a bug")):
        with pytest.raises(RuntimeError, match="a bug"):
            reports_errors(lambda argv, bug=bug: (_ for _ in ()).throw(bug))([])


def test_a_name_that_the_output_s_encoding_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert reports_errors(lambda argv: print("caf\xe9 柴犬.jpg"))([]) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"caf\xe9 \\u67f4\\u72ac.jpg\n"


def test_flags_are_not_abbreviated(capsys):
    parser = ArgumentParser("What it does.")
    parser.add_argument("--recipe")
    assert parser.parse_args(["--recipe", "x"]).recipe == "x"
    for short in (["--rec", "x"], ["--rec=x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(short)
        assert capsys.readouterr().err.startswith("error: unrecognized arguments: --rec")


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
    assert ImageSize("384") == (384, 384) and ImageSize("224x336") == (224, 336)
    assert str(ImageSize("384")) == "384x384"
    with pytest.raises(argparse.ArgumentTypeError):
        ImageSize("1x2x3")
    assert picture_file("a/b.PDF").name == "b.PDF"
    with pytest.raises(argparse.ArgumentTypeError, match="must end in .png, .pdf or .svg"):
        picture_file("f.gif")


def test_notes_are_one_line_of_the_first_rank(capsys, monkeypatch):
    note("a\nb")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    note("c")
    assert capsys.readouterr().err == "note: a\\nb\n" and one_line("\r") == "\\r"
