"""What several test files do with training runs."""

import csv

import torch

import p1_train
from engine import checkpointing

TRAIN = ["--arch", "test_vit", "--scratch", "--device", "cpu", "--workers", "0", "--batch-size", "8",
         "--lr", "1e-3", "--precision", "fp32"]


def train(data, output, *arguments, start=("--scratch",)):
    """The exit code of a short run of p1_train.py, from what the flags in `start` say."""
    flags = [*(flag for flag in TRAIN if flag != "--scratch"), *start, *arguments]
    return p1_train.main(["--data", str(data), "--output", str(output), *map(str, flags)])


MEASURED = {"seconds", "images_per_second", "peak_memory_mib"}  # what no two runs share


def weights(output, name="last.pt"):
    return torch.load(output / name, weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def largest_difference(one, other):
    return max((one[key] - other[key]).abs().max().item() for key in one)


def metrics(output):
    with open(output / "metrics.csv") as file:
        return list(csv.DictReader(file))


def computed(output):
    """The metrics, without what depends on the machine."""
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in metrics(output)]


class Killed(BaseException):
    """What stands for a kill in the tests' own process."""


def die_after_saves(monkeypatch, *numbers):
    """Have training raise Killed when last.pt has been saved so many times over all runs of a test."""
    save, saves = checkpointing.save_checkpoint, []

    def save_then_die(content, path, *previous):
        save(content, path, *previous)
        saves.append(path.name)
        if path.name == "last.pt" and saves.count("last.pt") in numbers:
            raise Killed

    monkeypatch.setattr(checkpointing, "save_checkpoint", save_then_die)
