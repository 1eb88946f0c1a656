"""Photos of one colour, and a small model's preprocessing of them."""

from PIL import Image

PREPROCESSING = {"input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3,
                 "crop_pct": 0.9, "crop_mode": "center"}


def save(path, size=(20, 16), colour=(200, 100, 50), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
