"""How fast photos are evaluated, against tensors in memory and against one photo at a time as public scripts do.

    python -m benchmarks evaluation
    python -m benchmarks.evaluation photos checkpoint.pt p1_data/val

The ways, each in a process of its own, on the same photos and weights, in fp32; the time is that from opening the
checkpoint to the predictions:

    photos      p1_eval.py
    ceiling     the model on one tensor, in the batches of p1_eval.py and with its memory settings: nothing else
    plain       open, convert, transform and predict one photo after the other
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
from torchvision import transforms

import p1_eval
from benchmarks import photos
from benchmarks.rows import in_own_processes, ratio
from engine.device import keep_freed_memory
from models import vit
from models.checkpoint import checkpoint_fields

SEVERAL = 64  # images a batch, as in p1_eval.py


def write_checkpoint(path, arch):
    """A checkpoint of a model with the pretrained weights at hand, or with random ones."""
    weights = photos.weights_file() if arch == "vit_tiny_patch16_224" else None
    model, _ = vit.create(arch, weights=weights, scratch=weights is None)
    labels = [str(i) for i in range(model.num_classes)]
    torch.save({**checkpoint_fields(arch, labels, labels, vit.preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)


def opened(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    model = timm.create_model(content["arch"], num_classes=len(content["labels"]))
    model.load_state_dict(content["state_dict"])
    return model.eval(), content["preprocessing"]


def from_photos(checkpoint, folder):
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        p1_eval.main([str(folder), f"{output}/pred.csv", "--checkpoint", str(checkpoint), "--device", "cpu"])
        seconds = time.perf_counter() - started
        with open(f"{output}/pred.csv", newline="") as file:
            return seconds, [row["label"] for row in csv.DictReader(file)]


@torch.no_grad()
def ceiling(checkpoint, folder):
    keep_freed_memory()
    model, preprocessing = opened(checkpoint)
    count = len(list(folder.iterdir()))
    images = torch.randn(SEVERAL, *preprocessing["input_size"])
    model(images)
    started = time.perf_counter()
    for start in range(0, count, SEVERAL):
        model(images[:count - start])
    return time.perf_counter() - started, None


@torch.no_grad()
def plain(checkpoint, folder):
    started = time.perf_counter()
    model, preprocessing = opened(checkpoint)
    size = preprocessing["input_size"][-1]
    transform = transforms.Compose([
        transforms.Resize(int(size / preprocessing["crop_pct"]), transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(preprocessing["mean"], preprocessing["std"])])
    predictions = []
    for path in sorted(folder.iterdir()):
        image = transform(Image.open(path).convert("RGB"))
        predictions.append(str(model(image[None]).argmax(1).item()))
    return time.perf_counter() - started, predictions


WAYS = {"photos": from_photos, "ceiling": ceiling, "plain": plain}


def rows(options):
    """The rows of the table. Raises RuntimeError where the predictions differ."""
    folder = photos.data_folder() / "train"
    count = len(list(folder.iterdir()))
    with tempfile.TemporaryDirectory() as work:
        checkpoint = Path(work) / "checkpoint.pt"
        write_checkpoint(checkpoint, options.arch)
        found = in_own_processes(options.repeats, "benchmarks.evaluation", WAYS, checkpoint, folder)
    pace = {way: [count / seconds for seconds, _ in turns] for way, turns in found.items()}
    (_, ours), (_, theirs) = found["photos"][0], found["plain"][0]
    if ours != theirs:
        raise RuntimeError(f"{sum(a != b for a, b in zip(ours, theirs))} of {count} predictions differ from the plain loop's")
    yield ratio("evaluating photos / the model on a tensor in memory", pace["photos"], pace["ceiling"], ">=", 0.8, "images/s")
    yield ratio("evaluating photos / one photo at a time, same predictions", pace["photos"], pace["plain"], ">=", 2, "images/s")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    print(json.dumps(WAYS[options.way](options.checkpoint, options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
