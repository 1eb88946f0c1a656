"""Figures that other processes draw."""

import os
import signal
import subprocess
import sys
import time

import pytest

from common.errors import BadInput
from plots.drawing import Drawing


def write(text, path, end=""):
    path.write_text(f"{text}{end} {os.getpid()}")


def fail(path):
    path.write_text("half")
    raise OSError(28, "No space left on device")


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_all_are_drawn_by_other_processes(tmp_path):
    with Drawing() as drawing:
        for i in range(20):
            drawing.draw(tmp_path / f"{i}.png", write, i, end="!")
    for i in range(20):
        text, process = (tmp_path / f"{i}.png").read_text().split()
        assert text == f"{i}!" and process != str(os.getpid())


@pytest.mark.parametrize("following", [0, 20])
def test_an_error_comes_out_and_nothing_is_left_half_written(tmp_path, following):
    with pytest.raises(OSError, match="No space left") as error:
        with Drawing() as drawing:
            drawing.draw(tmp_path / "full.png", fail)
            for i in range(following):
                drawing.draw(tmp_path / f"{i}.png", write, i)
    assert error.value.filename == str(tmp_path / "full.png")
    assert not (tmp_path / "full.png").exists() and not list(tmp_path.glob(".*"))


def test_an_error_of_the_work_itself_comes_first(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Drawing() as drawing:
            drawing.draw(tmp_path / "full.png", fail)
            raise ZeroDivisionError


def test_a_process_that_was_killed_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="was killed"):
        with Drawing() as drawing:
            drawing.draw(tmp_path / "dead.png", die)
            for i in range(20):
                drawing.draw(tmp_path / f"{i}.png", write, i)


def test_processes_that_draw_end_with_the_one_that_was_killed():
    code = ("import multiprocessing, sys, time\nfrom plots.drawing import Drawing\n"
            "with Drawing() as drawing:\n"
            "    drawing._pool.submit(time.sleep, 0)\n"
            "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
            "    time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    children = list(map(int, process.stdout.readline().split()))
    assert children
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < end, [os.kill(child, signal.SIGKILL) for child in children]
        time.sleep(0.1)
