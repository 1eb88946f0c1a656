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
from benchmarks.rows import ROOT, Row, in_turn, peak_mib, ratio, seconds
from datasets.images import read_training_folder

SCRIPTS = [*ROOT.glob("p[12]_*.py"), ROOT / "report_page.py"]
NO_PART_OF_IT = shutil.ignore_patterns(".git", ".venv", "data", "runs", "figures", "downloads", "p1_data")


def demo_seconds():
    """From the call of demo.sh, in a copy of the project with this .venv, to its first training step."""
    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(ROOT, Path(work) / "copy", ignore=NO_PART_OF_IT)
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
    repeats = range(options.repeats)
    commands = [[sys.executable, script, "--help"] for script in SCRIPTS]
    times = [max(seconds(subprocess.check_output, command) for command in commands) for _ in repeats]
    yield Row("--help of the slowest script, seconds", times, "<=", 0.4)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "files"
        folder.mkdir()
        for i in range(count):
            (folder / f"{i % 37}_{i}.jpg").write_bytes(b"x")
        times = [seconds(read_training_folder, folder, folder / "classes.txt") for _ in repeats]
        yield Row(f"listing {count:,} files and their labels, seconds", times, "<=", 3)
    yield from memory_rows(options.repeats, few, many)
    if not options.small:  # it takes its time whatever the sizes
        yield Row("demo.sh to the first training step, seconds", [demo_seconds() for _ in repeats], "<=", 8)


def memory_rows(repeats, few, many):
    """The peak memory of evaluation and of training with many photos, against that with few."""
    flags = "--device", "cpu", "--workers", 1
    model = "--output", "run", "--arch", "test_vit", "--scratch", "--optimizer", "adam", "--epochs", 1
    with tempfile.TemporaryDirectory() as work:
        checkpoint, folders = Path(work) / "checkpoint.pt", [Path(work) / "many", Path(work) / "few"]
        write_checkpoint(checkpoint, "test_vit")
        for folder, count in zip(folders, (many, few)):
            photo_folder(folder / "train", count)
        for what, command, part in (("evaluating", ["p1_eval.py", "--checkpoint", checkpoint], "train"),
                                    ("training on", ["p1_train.py", *model, "--data"], "")):
            ours, other = ((peak_mib, *command, folder / part, *flags) for folder in folders)
            peaks = in_turn(repeats, ours=ours, other=other)
            yield ratio(f"peak memory, {what} {many:,} photos / {few}", *peaks.values(), "<=", 1.05, "MiB")
