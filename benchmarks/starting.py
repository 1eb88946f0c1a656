"""Seconds that a person waits before anything happens, and the memory that many files take."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks.evaluation import photo_folder, write_checkpoint
from benchmarks.rows import ROOT, compare, peak_mib, row, seconds
from datasets.images import read_training_folder

SCRIPTS = [*ROOT.glob("p[12]_*.py"), ROOT / "report_page.py"]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "data", "runs", "figures", "downloads", "p1_data")
FLAGS = "--device", "cpu", "--workers", 1
TRAIN = ("p1_train.py", "--output", "run", "--arch", "test_vit", "--scratch", "--optimizer", "adam",
         "--epochs", 1, "--data")


def slowest_help():
    return max(seconds(subprocess.check_output, [sys.executable, script, "--help"]) for script in SCRIPTS)


def demo_seconds():
    """From the call of demo.sh, in a copy of the project with this .venv, to its first training step."""
    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(ROOT, Path(work) / "copy", ignore=NOT_COPIED)
        (copy / ".venv").symlink_to(ROOT / ".venv")
        terminal, theirs = pty.openpty()  # the progress bar is for terminals
        termios.tcsetwinsize(terminal, (24, 200))  # wide enough for the loss
        started, output = time.perf_counter(), b""
        demo = subprocess.Popen(["bash", "demo.sh"], cwd=copy, stdout=theirs, stderr=theirs, process_group=0)
        os.close(theirs)  # if demo.sh ends early, reading raises OSError
        try:
            while b"loss=" not in output:
                output += os.read(terminal, 4096)
            return time.perf_counter() - started
        finally:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
            os.close(terminal)


def rows(options):
    """The rows of the table."""
    count, few, many = (100, 74, 148) if options.small else (100_000, 200, 2_000)
    turns = range(options.repeats)
    yield row("--help of the slowest script", "s", "<=", 0.4, [slowest_help() for _ in turns])
    with tempfile.TemporaryDirectory() as work:
        for i in range(count):
            Path(work, f"{i % 37}_{i}.jpg").write_bytes(b"x")
        times = [seconds(read_training_folder, work, Path(work, "classes.txt")) for _ in turns]
        yield row(f"listing {count:,} files and their labels", "s", "<=", 3, times)
    with tempfile.TemporaryDirectory() as work:
        folders = {size: Path(work) / str(size) for size in (few, many)}
        for size, folder in folders.items():
            photo_folder(folder / "train", size)
        evaluate = "p1_eval.py", "--checkpoint", write_checkpoint(Path(work) / "checkpoint.pt", "test_vit")
        for what, command, part in (("evaluating", evaluate, "train"), ("training on", TRAIN, "")):
            ours, other = ((peak_mib, *command, folders[size] / part, *FLAGS) for size in (many, few))
            yield from compare(options.repeats, f"peak memory, {what} {many:,} photos", "MiB", ours,
                               (few, 1.05, *other), op="<=")
    if not options.small:  # it takes its time whatever the sizes
        yield row("demo.sh to the first training step", "s", "<=", 8, [demo_seconds() for _ in turns])
