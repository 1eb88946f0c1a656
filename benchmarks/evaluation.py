"""How fast photos are evaluated, against a tensor in memory and one photo at a time as public scripts do.

All with the same weights in fp32; the time is that from opening the checkpoint to the predictions.
"""

import csv
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import p1_eval
from benchmarks.rows import in_turn, ratio, run_script, seconds
from datasets.shapes import DEMO_DATA, write_dataset
from engine.device import keep_freed_memory
from models.checkpoint import checkpoint_fields
from models.vit import preprocessing

CLASSES = 37
BATCH_SIZE = 64  # that of p1_eval.py
REAL_DATA = os.environ.get("REAL_DATA", "")


def photo_folder(folder, count):
    """Make `folder` with `count` links to photos, one subfolder a class; returns their paths, sorted.

    They are the training photos of REAL_DATA, or else the demo's images, which are smaller.
    """
    data = Path(REAL_DATA).resolve() / "pets" if REAL_DATA else write_dataset(DEMO_DATA)
    sources = sorted((data / "train").iterdir())
    paths = [folder / str(i % CLASSES) / f"{i:06}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(sources[i % len(sources)])
    return sorted(paths)


def write_checkpoint(path, arch):
    """A checkpoint with the pretrained weights that REAL_DATA has, or with random ones."""
    weights = Path(REAL_DATA, "weights", f"{arch}.augreg_in21k_ft_in1k.safetensors")
    model = timm.create_model(arch, checkpoint_path=weights if weights.exists() else "")
    labels = [str(i) for i in range(model.num_classes)]
    torch.save({**checkpoint_fields(arch, labels, labels, preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)


def photos(checkpoint, folder):
    """p1_eval.py: (seconds, predictions)."""
    with tempfile.TemporaryDirectory() as output:
        csv_file = Path(output) / "pred.csv"
        args = folder, csv_file, "--checkpoint", checkpoint, "--device", "cpu"
        taken = seconds(run_script, p1_eval.main, *args)
        with open(csv_file, newline="") as file:
            return taken, [row["label"] for row in csv.DictReader(file)]


@torch.no_grad()
def tensor(arch, count):
    """The model on one tensor, in batches: (seconds for `count` images,)."""
    keep_freed_memory(torch.device("cpu"))
    model = timm.create_model(arch).eval()
    images = torch.randn(BATCH_SIZE, *model.pretrained_cfg["input_size"])
    model(images)
    return seconds(lambda: [model(images[:count - start]) for start in range(0, count, BATCH_SIZE)]),


@torch.no_grad()
def plain(arch, checkpoint, paths, fused=True):
    """timm's transform and model on one photo after the other: (seconds, predictions, maps (photos, H, W)).

    Only attention that is not `fused` leaves maps: the last block's, from [CLS] to the patches.
    """
    started = time.perf_counter()
    model = timm.create_model(arch, checkpoint_path=checkpoint).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    maps = []
    model.blocks[-1].attn.attn_drop.register_forward_hook(
        lambda module, inputs, output: maps.append(output[0, :, 0, 1:].mean(0).numpy()))
    for block in model.blocks:
        block.attn.fused_attn = fused
    logits = [model(transform(Image.open(path).convert("RGB"))[None]) for path in paths]
    taken = time.perf_counter() - started
    maps = np.reshape(maps, (-1, *model.patch_embed.grid_size))
    return taken, [str(each.argmax().item()) for each in logits], maps


def rows(options):
    """The rows of the table. Raises RuntimeError where the predictions differ."""
    arch, count = ("test_vit", 8) if options.small else ("vit_tiny_patch16_224", 331)
    with tempfile.TemporaryDirectory() as work:
        folder, checkpoint = Path(work) / "photos", Path(work) / "checkpoint.pt"
        paths = photo_folder(folder, count)
        write_checkpoint(checkpoint, arch)
        turns = in_turn(options.repeats, photos=(photos, checkpoint, folder), tensor=(tensor, arch, count),
                        plain=(plain, arch, checkpoint, paths))
    if turns["photos"][0][1] != turns["plain"][0][1]:
        raise RuntimeError("the predictions differ from those of the plain loop")
    pace = {way: [count / taken for taken, *_ in results] for way, results in turns.items()}
    for way, words, goal in (("tensor", "the model on a tensor in memory", 0.8),
                             ("plain", "one photo at a time, same predictions", 2)):
        yield ratio(f"evaluating photos / {words}", pace["photos"], pace[way], ">=", goal, "images/s")
