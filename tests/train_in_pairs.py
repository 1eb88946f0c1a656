"""Runs of p1_train.py and p1_eval.py in two gloo processes, and the same in one, for test_distributed.py to compare.

    python -m tests.train_in_pairs DATA OUTPUT

Each run leaves a folder in OUTPUT and what it printed in a .log file; codes.json has the exit codes of its processes.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import p1_eval
import p1_train
from datasets import images
from engine.state import TrainingState
from tests import forked

SETTINGS = ["--arch", "test_vit", "--scratch", "--device", "cpu", "--workers", "0", "--lr", "1e-2", "--epochs", "2"]
ONE = ["--batch-size", "12"]
TWO = ["--batch-size", "1", "--accumulate", "6", "--climb", "joint"]


def in_float64():
    torch.set_default_dtype(torch.float64)
    get = images.ImageDataset.__getitem__

    def doubled(self, key):
        image, target = get(self, key)
        return image.double(), target

    images.ImageDataset.__getitem__ = doubled


def die_in_the_middle_of_an_epoch(rank):
    """Process 1 is killed after the second step, before it can tell process 0 so."""
    count = TrainingState.count_step

    def counting(self, *args):
        count(self, *args)
        if rank == 1 and self.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingState.count_step = counting


def fail_on_one_image(rank):
    """Process 1 alone meets a file that cannot be read."""
    if rank == 1:
        images.ImageDataset.__getitem__ = lambda self, key: images.load_image(Path(__file__))


def main(data, output):
    torch.set_num_threads(1)
    codes = {}

    def run(name, *flags, main=p1_train.main, pair=True, prepare=lambda rank: None):
        log = output / f"{name}.log"
        if main is p1_train.main:
            flags = ["--data", data, "--output", output / name, *SETTINGS, *(TWO if pair else ONE), *flags]
        if pair:
            processes = forked.start_pair(main, flags, log, prepare)
        else:
            processes = [forked.start(main, flags, log, lambda: prepare(0))]
        codes.setdefault(name, []).append(list(map(forked.ended, processes)))

    for name, *flags in (("sgd", "--optimizer", "sgd"), ("sam", "--optimizer", "sgd", "--sam", "--rho", "0.2"),
                         ("adam64", "--optimizer", "adam", "--lr", "1e-3")):
        for pair in (True, False):
            run(f"{name} {'two' if pair else 'one'}", *flags, pair=pair,
                prepare=lambda rank: in_float64() if name == "adam64" else None)

    own = ["--optimizer", "adam", "--sam", "--climb", "process", "--precision", "fp16", "--ema", "0.8", "--workers", "1"]
    run("straight", *own)
    run("lost", *own, prepare=die_in_the_middle_of_an_epoch)
    run("lost", *own, "--resume")
    run("straight", *own, "--resume", *TWO[:4], pair=False)
    run("bad", prepare=fail_on_one_image)
    run("typing error", "--holdout", "2")

    checkpoint = ["--checkpoint", output / "sam one" / "best.pt", "--device", "cpu", "--workers", "0"]
    for name, *flags in (("val",), ("few", "--batch-size", "1")):
        folder = data / "val" if name == "val" else output / "one image"
        for pair in (True, False):
            stem = f"{name} {'two' if pair else 'one'}"
            run(f"eval {stem}", folder, output / f"{stem}.csv", "--json", output / f"{stem}.json", *checkpoint, *flags,
                main=p1_eval.main, pair=pair)
    (output / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
