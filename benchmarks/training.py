"""How fast photos are trained on, against tensors in memory and against the loop that one writes first.

    python -m benchmarks training            # the rows of the table
    python -m benchmarks.training photos     # one of the ways alone, in images/s

The ways, each in a process of its own:

    photos      p1_train.py on JPEG files, with --cache, from the second epoch on
    memory      the loop of p1_train.py on images that are in memory already
    ceiling     forward, backward and Adam on one tensor, with the memory settings of p1_train.py: nothing else
    eager       the same as torch comes
    plain       PIL and torchvision in the main process, as torch comes, in fp32
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision import transforms

import p1_train
from benchmarks import photos
from benchmarks.rows import in_own_processes, ratio
from engine.device import PRECISIONS, autocast, has_instructions_for, keep_freed_memory
from engine.training import Run

CLASSES = 37
CACHE = {"cpu": 1, "cuda": 8}  # GiB
WARM_UP = 2  # steps


def trained(options, epochs, train):
    """The images/s of p1_train.py from its second epoch on; `train` gets its arguments and what to train on as a list."""
    data = options.data or photos.data_folder()
    with tempfile.TemporaryDirectory() as output:
        train(["--data", str(data), "--output", output, "--arch", options.arch, "--scratch", "--optimizer", "adam",
               "--epochs", str(epochs), "--batch-size", str(options.batch_size), "--precision", options.precision,
               "--holdout", "0", "--device", options.device, "--cache", str(CACHE[options.device])])
        with open(Path(output) / "metrics.csv", newline="") as file:
            epochs = list(csv.DictReader(file))[1:]
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    return sum(float(epoch["images_per_second"]) * each for epoch, each in zip(epochs, seconds)) / sum(seconds)


def from_photos(options):
    return trained(options, 3, p1_train.main)


class InMemory(torch.utils.data.Dataset):
    """As many images as are trained on in `steps` steps, all of them the same tensor, by the keys of p1_train.py."""

    def __init__(self, shape, batch_size, steps):
        self.image, self.count = torch.randn(shape), batch_size * steps

    def __getitem__(self, key):
        return self.image, key[1] % CLASSES


def from_memory(options):
    def train(args):
        run = Run(p1_train.get_args_parser().parse_args([*args, "--no-sam", "--workers", "0"]))
        model = timm.create_model(options.arch, num_classes=CLASSES).to(run.device)
        dataset = InMemory(model.pretrained_cfg["input_size"], options.batch_size, options.steps)

        def losses(model, batch):
            logits = model(batch[0])
            return cross_entropy(logits.float(), batch[1], reduction="sum"), (logits.argmax(1) == batch[1]).sum()

        run.train(model, dataset, ["an image"] * dataset.count, losses, fields={}, fingerprint="", title="", about={})

    return trained(options, 2, train)


def on_a_tensor(options):
    device = torch.device(options.device)
    model = timm.create_model(options.arch, num_classes=CLASSES).to(device)
    images = torch.randn(options.batch_size, *model.pretrained_cfg["input_size"], device=device)
    targets = torch.arange(options.batch_size, device=device) % CLASSES
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5)
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        optimizer.zero_grad()
        with autocast(device, options.precision):
            loss = cross_entropy(model(images).float(), targets)
        loss.backward()
        optimizer.step()
        loss.item()
    return options.batch_size * options.steps / (time.perf_counter() - started)


def ceiling(options):
    keep_freed_memory()
    return on_a_tensor(options)


class PlainDataset(torch.utils.data.Dataset):
    def __init__(self, folder, size):
        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        return self.transform(Image.open(path).convert("RGB")), int(path.name.split("_")[0])


def plain(options):
    model = timm.create_model(options.arch, num_classes=CLASSES)
    dataset = PlainDataset(photos.data_folder() / "train", model.pretrained_cfg["input_size"][-1])
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5, foreach=False)
    step, images_seen = 0, 0
    while step < WARM_UP + options.steps:
        for images, targets in loader:
            if step == WARM_UP:
                started, images_seen = time.perf_counter(), 0
            if step == WARM_UP + options.steps:
                break
            optimizer.zero_grad()
            loss = cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            loss.item()
            step, images_seen = step + 1, images_seen + len(images)
    return images_seen / (time.perf_counter() - started)


WAYS = {"photos": from_photos, "memory": from_memory, "ceiling": ceiling, "eager": on_a_tensor, "plain": plain}


def rows(options):
    """The rows of the table. `options` has `arch`, `repeats` and `steps`."""
    precision = "bf16" if has_instructions_for("bf16") else "fp32"
    few, many = (4, 8) if options.small else (32, 64)
    flags = ["--arch", options.arch, "--steps", options.steps, "--precision", precision, "--batch-size", few]
    times = in_own_processes(options.repeats, "benchmarks.training", WAYS, *flags)
    yield ratio(f"training on photos ({precision}) / on a tensor in memory", times["photos"], times["ceiling"],
                ">=", 0.95, "images/s")
    yield ratio(f"training on photos ({precision}) / the plain loop (fp32)", times["photos"], times["plain"],
                ">=", 2, "images/s")
    yield ratio(f"training step ({precision}, {few} images) / plain eager", times["memory"], times["eager"],
                ">=", 1.05, "images/s")
    flags[-1] = many
    times = in_own_processes(options.repeats, "benchmarks.training", ["memory", "eager"], *flags)
    yield ratio(f"training step ({precision}, {many} images) / plain eager", times["memory"], times["eager"],
                ">=", 1.05, "images/s")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--arch", default="vit_tiny_patch16_224", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="that are measured, but for `photos` (%(default)s)")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="(%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of all but `plain` (%(default)s)")
    parser.add_argument("--data", type=Path, help="the folder with train/, for `photos` (that of benchmarks.photos)")
    options = parser.parse_args(argv)
    print(json.dumps(WAYS[options.way](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
