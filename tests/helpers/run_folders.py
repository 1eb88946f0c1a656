"""Run folders as p1_train.py and p1_eval.py leave them, with answers that a test chooses."""

import csv
import json

import numpy as np
from PIL import Image

from common.files import sha256
from compare.runs import Study

SETTINGS = {"data": "p1_data", "holdout": 0.1, "skip_bad": False, "recipe": None,
            "arch": "vit_tiny_patch16_224",
            "weights": "tiny.safetensors", "scratch": False, "optimizer": "adam", "sam": False, "rho": 0.05,
            "adaptive": False, "sync_perturbation": False, "epochs": 4, "batch_size": 32, "lr": 1e-4,
            "ema": None,
            "precision": "fp32", "seed": 0, "workers": None, "device": "auto", "save_every": None,
            "resume": False, "processes": 1}
NAMES = ["beagle", "pug", "sphynx"]


def write_run(folder, right, *, confidence=0.8, curve=(0.4, 0.6, 0.8, 0.8), train=(0.3, 0.5, 0.7, 0.9),
              step_passes=10, targets=None, images=None, parameters=5_500_000, predicted=None, probe=None,
              scores=None,
              **settings):
    """Write a run folder, and return it.

    `right` (images,) says which images the model gets right; of the others it predicts the next class, or
    `predicted`. `curve` is the held-out accuracy of each epoch, None where nothing is held out. `scores` go
    into eval.json; a setting that is ... is one that the run does not have.
    """
    folder.mkdir(parents=True)
    settings = {**SETTINGS, "output": str(folder), "epochs": len(train), **settings}
    settings = {name: value for name, value in settings.items() if value is not ...}
    config = {"settings": settings,
              "model": {"parameters": parameters, "width": 192, "heads": 3, "depth": 12},
              "command": f"p1_train.py --data p1_data --output {folder}", "git_commit": None, "versions": {}}
    if probe:
        config["probe"] = {"C": 1.0, "accuracy": 0.9, "seconds": probe}
    (folder / "config.json").write_text(json.dumps(config))
    passes = step_passes * (2 if settings["sam"] else 1)
    rows = [{"epoch": i + 1, "lr": 1e-4, "train_loss": 3 / (i + 1), "train_accuracy": accuracy,
             "holdout_loss": None, "holdout_accuracy": None if curve is None else curve[i],
             "skipped_steps": 0,
             "images_per_second": 50 * (i + 1), "seconds": 30, "passes": passes, "peak_memory_mib": 1000 + i}
            for i, accuracy in enumerate(train)]
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "best.pt").write_text(str(folder))
    write_evaluation(folder, np.asarray(right, dtype=bool), confidence, targets, predicted,
                     images or folder.parent / "photos" / "val", scores or {})
    return folder


def write_evaluation(folder, right, confidence, targets, predicted, images, scores):
    """The eval.json and eval.npz of a run folder."""
    targets = np.arange(len(right)) % len(NAMES) if targets is None else np.asarray(targets)
    if predicted is None:
        predicted = np.where(right, targets, (targets + 1) % len(NAMES))
    confidence = np.broadcast_to(confidence, len(right))
    probabilities = np.repeat((1 - confidence)[:, None] / (len(NAMES) - 1), len(NAMES), 1)
    probabilities[np.arange(len(right)), predicted] = confidence
    labelled = targets >= 0
    correct = int((predicted == targets)[labelled].sum())
    (folder / "eval.json").write_text(json.dumps({
        "accuracy": correct / max(1, labelled.sum()), "correct": correct, "labelled": int(labelled.sum()),
        "images": len(right), "checkpoint_sha256": sha256(folder / "best.pt"), **scores}))
    np.savez(folder / "eval.npz", names=np.array([f"{target}_{i}.jpg" for i, target in enumerate(targets)]),
             targets=targets, probabilities=probabilities.astype(np.float32),
             labels=np.array([str(i) for i in range(len(NAMES))]), class_names=np.array(NAMES),
             folder=np.array(str(images)))


def right_of(*wrong, total=60):
    """All of so many images but those in `wrong`, which are indices or ranges of them."""
    indices = [i for one in wrong for i in (one if isinstance(one, range) else [one])]
    return ~np.isin(np.arange(total), indices)


def study(folder):
    """The Study of all runs in a folder, in the order of their names."""
    return Study(sorted(path for path in folder.iterdir() if path.name != "photos"))


def write_mistakes(folder):
    """Two settings, one of two seeds, on 12 photos, 3 wrong in every run. Returns the photos' folder."""
    photos = folder / "photos" / "val"
    photos.mkdir(parents=True)
    targets = np.arange(12) % 3
    for i, target in enumerate(targets):
        Image.new("RGB", (40, 30), (20 * i, 100, 100)).save(photos / f"{target}_{i}.jpg")
    for name, wrong, confidence, settings in (
            ("run0", {0: 1, 3: 1, 4: 0, 6: 2}, 0.6, {"seed": 0, "recipe": "a/b $x$.toml"}),
            ("run1", {0: 1, 4: 0, 6: 1}, 0.9, {"seed": 1, "recipe": "a/b $x$.toml"}),
            ("run2", {0: 2, 4: 0, 6: 1}, 0.5, {"sam": True, "recipe": "sam.toml"})):
        predicted = targets.copy()
        predicted[list(wrong)] = list(wrong.values())
        write_run(folder / name, targets == predicted, predicted=predicted, confidence=confidence,
                  images=photos, **settings)
    return photos
