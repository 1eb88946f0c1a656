"""Runs of p1_train.py and p1_eval.py in two gloo processes, and the same in one, to be compared.

    python -m tests.helpers.train_in_pairs DATA OUTPUT

Some are in three, of p2_train.py too. Each run leaves a folder in OUTPUT and what it printed in a .log file;
codes.json has the exit codes of its processes. test_distributed.py compares them.
"""

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

import p1_eval
import p1_train
import p2_train
from datasets import decode, images, scenes
from engine import loop
from engine.output import locked
from engine.state import TrainingState
from tests.helpers import forked

SETTINGS = ["--device", "cpu", "--workers", "0", "--precision", "fp32", "--lr", "1e-2", "--epochs", "2"]
TINY = ["--arch", "test_vit", "--scratch"]
ONE = ["--batch-size", "12"]
TWO = ["--batch-size", "2", "--accumulate", "3"]
ADAM_SAM = ["--optimizer", "adam", "--sam", "--ema", "0.8", "--workers", "1"]
THREE = {"adam": [p1_train.main, "--optimizer", "adam", "--batch-size", "2", "--accumulate", "1"],
         "sam": [p1_train.main, "--optimizer", "adam", "--sam", "--batch-size", "1", "--accumulate", "2"],
         "captioner": [p2_train.main, "--batch-size", "2", "--lr", "1e-3"]}


def signal_after_two_steps(number, ranks):
    """Send a signal to these processes, each from itself, before it can tell the other of its second step."""
    def prepare(rank):
        count = TrainingState.count_step

        def counting(self, *args):
            count(self, *args)
            if rank in ranks and (self.epoch, self.step) == (0, 2):
                os.kill(os.getpid(), number)

        TrainingState.count_step = counting
        # The loader of a killed process keeps its connections open until it notices, else after 5 seconds.
        torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2
        save = torch.save
        # Process 1 must not end before process 0 has saved.
        torch.save = lambda *args: (time.sleep(1), save(*args))

    return prepare


def die_after_connecting(rank):
    if rank == 1:
        torch.nn.parallel.DistributedDataParallel.__init__ = \
            lambda self, model, **options: os.kill(os.getpid(), signal.SIGKILL)


def fail_on_one_image(rank):
    """Process 1 alone meets a file that cannot be read."""
    if rank == 1:
        images.ImageDataset.__getitem__ = lambda self, key: decode.load_image(Path(__file__))


def main(data, output):
    torch.set_num_threads(1)
    loop.drawing_curves = lambda history, path: nullcontext()  # the pictures, which nothing here looks at
    codes = {}

    def run(name, *flags, main=p1_train.main, ranks=2, prepare=lambda rank: None):
        log = output / f"{name}.log"
        if main is p2_train.main:
            flags = ["--data", output / "scenes", "--output", output / name, *SETTINGS, *flags]
        elif main is p1_train.main:
            flags = ["--data", data, "--output", output / name, *TINY, *SETTINGS,
                     *(TWO if ranks > 1 else ONE), *flags]
        if ranks > 1:
            processes = forked.start_ranks(ranks, main, flags, log, prepare)
        else:
            processes = [forked.start(main, flags, log, lambda: prepare(0))]
        codes.setdefault(name, []).append(list(map(forked.ended, processes)))

    sgd = ["--optimizer", "sgd"]
    for name, flags in (("sgd", sgd), ("sam", [*sgd, "--sam", "--rho", "0.2", "--sync-perturbation"]),
                        ("adam64", ["--optimizer", "adam", "--lr", "1e-3"])):
        for ranks, word in ((2, "two"), (1, "one")):
            dtype = torch.float64 if name == "adam64" else torch.float32
            run(f"{name} {word}", *flags, ranks=ranks,
                prepare=lambda rank, dtype=dtype: torch.set_default_dtype(dtype))

    run("straight", *ADAM_SAM)
    for name, number, ranks in (("lost 1", signal.SIGKILL, [1]), ("lost 0", signal.SIGKILL, [0]),
                                ("stopped 1", signal.SIGTERM, [1]), ("stopped both", signal.SIGTERM, [0, 1])):
        run(name, *ADAM_SAM, prepare=signal_after_two_steps(number, ranks))
        run(name, *ADAM_SAM, "--resume")
    run("lost early", prepare=die_after_connecting)
    run("straight", *ADAM_SAM, "--resume", *TWO, ranks=1)
    with locked(output / "straight"):
        run("in use", "--output", output / "straight", *ADAM_SAM, "--epochs", "3", "--resume")
    run("bad", prepare=fail_on_one_image)
    run("typing error", "--holdout", "2")

    checkpoint = ["--checkpoint", output / "sam one" / "best.pt", "--device", "cpu", "--workers", "0"]
    for name, *flags in (("val",), ("few", "--batch-size", "1")):
        folder = data / "val" if name == "val" else output / "one image"
        for ranks, word in ((2, "two"), (1, "one")):
            stem = f"{name} {word}"
            run(f"eval {stem}", folder, output / f"{stem}.csv", "--json", output / f"{stem}.json",
                *checkpoint, *flags, main=p1_eval.main, ranks=ranks)

    scenes.write_scenes(output / "scenes", 24, 0, seed=5)
    for name, (main, *flags) in THREE.items():
        three = partial(run, main=main, ranks=3)
        flags += ["--epochs", "1", "--holdout", "0"]
        three(f"{name} straight", *flags)
        three(f"{name} stopped", *flags, prepare=signal_after_two_steps(signal.SIGTERM, [1]))
        three(f"{name} stopped", *flags, "--resume")
    (output / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
