"""The photos that are measured with: those of REAL_DATA, or as many drawn ones of about their size."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.shapes import drawn_once

DRAWN = Path(__file__).resolve().parent.parent / "data" / "benchmark_photos"
COUNTS = {"train": 331, "val": 111}
WEIGHTS = "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"


def data_folder():
    """A folder with train/ and val/, of labelled photos: 331 and 111."""
    if "REAL_DATA" in os.environ:
        return Path(os.environ["REAL_DATA"]).resolve() / "pets"
    return drawn_once(DRAWN, {"version": 1, **COUNTS}, set(COUNTS), lambda partial: write_photos(partial, COUNTS))


def weights_file():
    """Pretrained weights of a ViT-Tiny, or None."""
    file = Path(os.environ.get("REAL_DATA", DRAWN)).resolve() / WEIGHTS
    return file if file.exists() else None


def write_photos(folder, counts):
    """JPEGs of 37 classes that take as long to decode as the real ones, 427 x 382 pixels and 106 kB on average."""
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([i, len(split)])
            smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((427, 382), Image.BICUBIC)
            grain = rng.normal(0, 14, (382, 427, 1))
            pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{i % 37}_{i}.jpg", quality=93)


def paths(count):
    """That many of the photos, train first; fewer where there are not so many."""
    folder = data_folder()
    return [path for split in ("train", "val") for path in sorted((folder / split).iterdir())][:count]
