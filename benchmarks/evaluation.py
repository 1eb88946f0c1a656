"""How fast photos are evaluated and explained, against a tensor in memory and one photo after the other.

All with the same weights in fp32; the time is that from opening the checkpoint to the predictions, or maps.
"""

import csv
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import p1_eval
from benchmarks.rows import compare, pace
from datasets.shapes import DEMO_DATA, write_dataset
from engine.device import keep_freed_memory
from interpret.photos import Viewer
from models.checkpoint import checkpoint_fields
from models.vit import preprocessing

CLASSES = 37
BATCH_SIZE = 64  # that of p1_eval.py
CPU = torch.device("cpu")
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
    """A checkpoint with the pretrained weights that REAL_DATA has, or with random ones; returns its path."""
    weights = Path(REAL_DATA, "weights", f"{arch}.augreg_in21k_ft_in1k.safetensors")
    model = timm.create_model(arch, checkpoint_path=weights if weights.exists() else "")
    labels = [str(i) for i in range(model.num_classes)]
    torch.save({**checkpoint_fields(arch, labels, labels, preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)
    return path


def predictions(checkpoint, folder):
    """The labels by p1_eval.py."""
    with tempfile.TemporaryDirectory() as output:
        csv_file = Path(output) / "pred.csv"
        p1_eval.main([str(folder), str(csv_file), "--checkpoint", str(checkpoint), "--device", "cpu"])
        with open(csv_file, newline="") as file:
            return [row["label"] for row in csv.DictReader(file)]


def attention(checkpoint, paths):
    """The maps (photos, H, W) that p1_viz_attn.py draws."""
    keep_freed_memory(CPU)
    return np.stack([photo.attention for photo in Viewer(CPU, checkpoint).attend(paths)])


@torch.no_grad()
def tensor(arch, count):
    """The model on one tensor, in batches: (images/s, None)."""
    keep_freed_memory(CPU)
    model = timm.create_model(arch).eval()
    images = torch.randn(BATCH_SIZE, *model.pretrained_cfg["input_size"])
    model(images)
    return pace(count, lambda: [model(images[:count - i]) for i in range(0, count, BATCH_SIZE)])[0], None


@torch.no_grad()
def plain(arch, checkpoint, paths, with_maps=False):
    """The labels by timm's transform and model, one photo after the other as public scripts do.

    `with_maps` the last block's mean attention from [CLS] to the patches instead, (photos, H, W): not fused.
    """
    model = timm.create_model(arch, checkpoint_path=checkpoint).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    maps = []
    if with_maps:
        model.blocks[-1].attn.attn_drop.register_forward_hook(
            lambda module, inputs, weights: maps.append(weights[0, :, 0, 1:].mean(0)))
        for block in model.blocks:
            block.attn.fused_attn = False
    logits = [model(transform(Image.open(path).convert("RGB"))[None]) for path in paths]
    if with_maps:
        return torch.stack(maps).unflatten(1, model.patch_embed.grid_size).numpy()
    return [str(each.argmax().item()) for each in logits]


def rows(options):
    """The rows of the table."""
    arch, count, few = ("test_vit", 8, 4) if options.small else ("vit_tiny_patch16_224", 331, 100)
    with tempfile.TemporaryDirectory() as work:
        folder, checkpoint = Path(work) / "photos", write_checkpoint(Path(work) / "checkpoint.pt", arch)
        paths = photo_folder(folder, count)
        yield from compare(
            options.repeats, "evaluating photos", "images/s", (pace, count, predictions, checkpoint, folder),
            ("the model on a tensor in memory", 0.8, tensor, arch, count),
            ("one photo at a time, same predictions", 2, pace, count, plain, arch, checkpoint, paths))
        yield from compare(
            options.repeats, f"attention of {few} photos", "photos/s",
            (pace, few, attention, checkpoint, paths[:few]),
            ("one photo at a time, not fused", 1.2, pace, few, plain, arch, checkpoint, paths[:few], True),
            equal=partial(np.allclose, rtol=0, atol=1e-5))
