"""Kill a small training run with SIGKILL at random moments, resume it, compare it with one left alone.

    python -m tests.helpers.kill_training --kills 25 --optimizer adam
    python -m tests.helpers.kill_training --kills 25 --optimizer adam --sam --workers 2

    python -m tests.helpers.kill_training --kills 25 --captioner
    python -m tests.helpers.kill_training --kills 25 --optimizer adam --sam --workers 2 --loaders

Unknown flags go to p1_train.py, or with --captioner to p2_train.py. The model has dropout and stochastic
depth, so that random numbers count. Most kills come from outside, after a random time. Every third one is an
ambush in the middle of a save: while last.pt or best.pt is written, or before, between or after the renames.
With --loaders a process that loads images is killed; the run saves by itself and ends with 3. A run that
survives to its end is compared, weights, optimizer and all, bit for bit; then the next one begins, until
there were enough kills and the last run was finished.

Exit code: 0 if all is equal, 1 otherwise.
"""

import argparse
import csv
import functools
import io
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch

import p1_train
import p2_train
from datasets.scenes import write_scenes
from datasets.shapes import write_dataset
from engine import checkpointing
from engine.output import LOCK
from tests.helpers import forked

SETTINGS = ["--arch", "test_vit", "--scratch", "--device", "cpu", "--epochs", "4", "--batch-size", "4",
            "--lr", "1e-3", "--save-every", "1", "--holdout", "0.2", "--ema", "0.8"]
CAPTIONER = ["--device", "cpu", "--epochs", "4", "--batch-size", "4", "--save-every", "1", "--holdout", "0.2",
             "--ema", "0.8"]
MEASURED = ("seconds", "images_per_second", "peak_memory_mib")  # what no two runs share


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def lay_ambush(chance):
    """Make this process kill itself in the middle of one of its next saves."""
    saves_to_come = chance.randrange(1, 8)
    where = chance.choice(["write", "rename", "rename", "rename"])
    save, replace, at_rename = torch.save, Path.replace, chance.randrange(3)
    saves, renames = [], []

    def cut_short(content, file):
        saves.append(None)
        if len(saves) < saves_to_come or where != "write":
            return save(content, file)
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[:chance.randrange(len(whole.getvalue()))])
        file.flush()
        die()

    def interrupted(path, target):
        if len(saves) >= saves_to_come and where == "rename":
            renames.append(None)
            if len(renames) > at_rename:
                die()
        return replace(path, target)

    torch.save, Path.replace = cut_short, interrupted


def start(main, arguments, log, ambush=None):
    """A training script's main in a process of its own, perhaps with an ambush ahead. Returns its number."""
    def prepare():
        timm.create_model = functools.partial(timm.create_model, proj_drop_rate=0.1, drop_path_rate=0.1)
        if ambush:
            lay_ambush(ambush)

    return forked.start(main, arguments, log, prepare)


def a_child(process, chance):
    """A random child of a process, as soon as it has one."""
    while not (children := Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        time.sleep(0.001)
    return int(chance.choice(children))


def flattened(value, name=""):
    """All that a checkpoint holds, by name, but the times that steps took."""
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if key not in MEASURED]
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {name: value.numpy() if isinstance(value, torch.Tensor) else value}
    return {key: item for inner, part in items for key, item in flattened(part, f"{name}/{inner}").items()}


def content(output):
    """What a finished run left, by name."""
    files = {name: torch.load(output / name, weights_only=True) for name in ("last.pt", "best.pt")}
    files["metrics.csv"] = rows(output)
    for name in ("last.pt", "best.pt"):
        del files[name]["settings"]  # the name of the folder, --resume
    return flattened(files)


def rows(output):
    with open(output / checkpointing.METRICS) as file:
        return list(csv.DictReader(file))


def differences(one, other):
    """The names of what differs between two such contents."""
    return sorted(name for name in one.keys() | other.keys() if name not in one or name not in other
                  or not np.array_equal(one[name], other[name], equal_nan=False))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=None, help="of the random moments")
    parser.add_argument("--captioner", action="store_true", help="train a captioner instead of a classifier")
    parser.add_argument("--loaders", action="store_true", help="kill a process that loads images instead")
    args, settings = parser.parse_known_args(argv)
    chance = random.Random(args.seed)
    torch.set_num_threads(1)  # this process forks, and threads do not survive that

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if args.captioner:
            script, common = p2_train.main, CAPTIONER
            data = write_scenes(scratch / "data", train=30, val=0, seed=7)
        else:
            script, common = p1_train.main, SETTINGS
            data = write_dataset(scratch / "data", ["cross", "heart", "ring", "star"], train_per_class=8,
                                 val_per_class=0, seed=7)

        def arguments(output, *more):
            return ["--data", str(data), "--output", str(output), "--workers", "0", *common, *settings, *more]

        alone = scratch / "alone"
        began = time.monotonic()
        code = forked.ended(start(script, arguments(alone), scratch / "log"))
        assert code == 0, (scratch / "log").read_text()
        duration = time.monotonic() - began
        expected = content(alone)
        print(f"left alone: {duration:.1f} s, {len(expected)} values", flush=True)

        kills, in_saves, runs, wrong = 0, 0, 0, []
        while kills < args.kills:
            output, runs = scratch / f"run{runs}", runs + 1
            code = None
            while code != 0:
                ambush = chance if kills % 3 == 2 and not args.loaders else None
                process = start(script, arguments(output, "--resume"), scratch / "log",
                                ambush if kills < args.kills else None)
                if kills < args.kills and not ambush:
                    end = time.monotonic() + chance.uniform(0, duration / 2)
                    while (code := forked.ended(process, wait=False)) is None and time.monotonic() < end:
                        time.sleep(0.001)
                    if code is None:
                        os.kill(a_child(process, chance) if args.loaders else process, signal.SIGKILL)
                        code = forked.ended(process)
                else:
                    code = forked.ended(process)
                if code == (3 if args.loaders else -signal.SIGKILL):
                    kills += 1
                    saving = any(path.name != LOCK for path in output.glob(".*"))
                    in_saves += saving
                    begun = (output / checkpointing.METRICS).exists()
                    epochs = [row["epoch"] for row in rows(output)] if begun else []
                    assert epochs == [str(i + 1) for i in range(len(epochs))], epochs
                    print(f"kill {kills:2} of run {runs}: {'ambush' if ambush else 'random'}, "
                          f"{'in a save' if saving else 'elsewhere'}, "
                          f"{len(epochs)} epochs in metrics.csv", flush=True)
                elif code != 0:
                    print((scratch / "log").read_text())
                    return 1
            wrong += differences(expected, content(output))
            wrong += [path.name for path in output.iterdir() if path.name.startswith(".")]
            print(f"run {runs} is finished: {'equal' if not wrong else f'not equal: {wrong[:5]}'}",
                  flush=True)
        print(f"{kills} kills, {in_saves} of them in a save, {runs} runs: "
              f"{len(wrong)} differences from the run left alone")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
