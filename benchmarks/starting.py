"""Seconds that a person waits before anything happens, and the memory that many files take.

    python -m benchmarks starting
"""

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

from benchmarks import evaluation, photos
from benchmarks.rows import Row, in_turn, ratio

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for pattern in ("p[12]_*.py", "report_page.py") for path in ROOT.glob(pattern))
FILES = 100_000
FEW, MANY = 200, 2_000  # photos


def help_seconds(script):
    started = time.perf_counter()
    subprocess.run([sys.executable, script, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def listing_seconds(folder):
    """The time to list FILES files and their labels; they are made on the first call."""
    from datasets.images import read_training_folder

    if not folder.exists():
        folder.mkdir()
        for i in range(FILES):
            (folder / f"{i % 37}_{i}.jpg").write_bytes(b"x")
    started = time.perf_counter()
    assert len(read_training_folder(folder, folder / "classes.txt").names) == FILES
    return time.perf_counter() - started


def demo_seconds():
    """The time from the call of demo.sh, in a copy of the project with the .venv of this one, to the first training step."""
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
            ".git", ".venv", "data", "runs", "figures", "downloads", "p1_data"))
        (copy / ".venv").symlink_to(ROOT / ".venv")
        terminal, theirs = pty.openpty()  # the progress bar is for terminals
        termios.tcsetwinsize(terminal, (24, 200))  # wide enough for the loss
        started = time.perf_counter()
        demo = subprocess.Popen(["bash", "demo.sh"], cwd=copy, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        try:
            shown = b""
            while b"loss=" not in shown:
                shown += os.read(terminal, 4096)
            return time.perf_counter() - started
        finally:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
            os.close(terminal)


def peak_mib(*command):
    """The most memory that a command held, with the largest of its processes, in MiB."""
    code = "import subprocess, sys, resource\nsubprocess.run(sys.argv[1:], check=True, stdout=2)\n" \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    done = subprocess.run([sys.executable, "-c", code, sys.executable, *map(str, command)], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    return float(done.stdout)


def photo_folder(folder, count):
    """A folder of `count` labelled photos, which are links to a few."""
    folder.mkdir(parents=True)
    some = photos.paths(20)
    for i in range(count):
        (folder / f"{i % 10}_{i}.jpg").symlink_to(some[i % len(some)])
    return folder


def rows(options):
    """The rows of the table."""
    for script in SCRIPTS:
        yield Row(f"{script} --help, seconds", [help_seconds(script) for _ in range(options.repeats)], "<=", 0.4)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        yield Row(f"listing {FILES:,} files and their labels, seconds",
                  [listing_seconds(work / "files") for _ in range(options.repeats)], "<=", 3)
        checkpoint = work / "checkpoint.pt"
        evaluation.write_checkpoint(checkpoint, "test_vit")
        few, many = photo_folder(work / "few" / "train", FEW), photo_folder(work / "many" / "train", MANY)
        device = ["--device", "cpu", "--workers", "1"]

        def evaluating(folder):
            return lambda: peak_mib("p1_eval.py", folder, work / "pred.csv", "--checkpoint", checkpoint, *device)

        def training(folder):
            def call():
                shutil.rmtree(work / "run", ignore_errors=True)
                return peak_mib("p1_train.py", "--data", folder.parent, "--output", work / "run", "--arch", "test_vit",
                                "--scratch", "--optimizer", "adam", "--epochs", "1", *device)
            return call

        for name, way in (("evaluating", evaluating), ("training on", training)):
            found = in_turn(options.repeats, {"many": way(many), "few": way(few)})
            yield ratio(f"peak memory, {name} {MANY:,} photos / {FEW}", found["many"], found["few"], "<=", 1.05, "MiB")
    yield Row("demo.sh to the first training step, seconds", [demo_seconds() for _ in range(options.repeats)], "<=", 8)
