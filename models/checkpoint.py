"""The checkpoint format of p1_train.py, opened and checked.

A checkpoint is a dict saved by torch and read with `weights_only=True`:

    format          1
    arch            timm's name
    labels          the labels as the training data wrote them, in the order of the head's outputs
    class_names     a name for each
    preprocessing   input_size, interpolation, mean, std, crop_pct, crop_mode: timm's data configuration
    settings        what the run was started with
    state_dict      the weights under timm's names

so that plain timm loads it too: `timm.create_model(arch, num_classes=len(labels), checkpoint_path=FILE)`,
with `img_size=` after training with `--image-size`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import BadInput
from models.exported import read_content, weights_file
from models.vit import build, preprocessing
from models.weights import (
    load_finite,
    refuse_other_format,
    refuse_other_keys,
    set_image_size,
    state_dict_in,
    trained_size,
)

FIELDS = {"format", "arch", "labels", "class_names", "preprocessing", "settings", "state_dict"}


def checkpoint_fields(arch, labels, class_names, preprocessing):
    """The dict described above, but for `settings` and `state_dict`, which belong to the run's state."""
    return {"format": 1, "arch": arch, "labels": list(labels), "class_names": list(class_names),
            "preprocessing": preprocessing}


@dataclass
class Checkpoint:
    """A checkpoint, opened: the model has the weights and is in evaluation mode."""

    path: Path  # the file of the weights
    model: torch.nn.Module
    arch: str
    labels: list
    class_names: list
    preprocessing: dict
    settings: dict


def open_checkpoint(path):
    """The Checkpoint in a file of `p1_train.py` or a folder of `p1_export.py`. BadInput for anything else."""
    content = read_content(path)
    if not isinstance(content, dict) or not FIELDS <= content.keys():
        raise BadInput(f"{path} is no checkpoint of p1_train.py: for plain weights pass --arch and --weights")
    refuse_other_format(content, path)
    arch, labels, names = content["arch"], content["labels"], content["class_names"]
    lists = isinstance(labels, list) and isinstance(names, list) and len(labels) == len(names) > 0
    if not lists or not all(isinstance(name, str) for name in (arch, *labels, *names)):
        raise BadInput(f"{path} does not say which model it is, or of which classes: it is damaged")
    weights = state_dict_in(content, path, "it is damaged")
    problem, size = f"do not fit its own architecture, {arch}", trained_size(content)
    try:
        with torch.device("meta"):  # what a file claims takes no memory until its weights are known to fit
            model = _build(arch, len(labels), size)
        refuse_other_keys(weights, model, f"its weights {problem}", "it is damaged")
        if not all(name in weights for name, _ in model.named_buffers()):
            model = _build(arch, len(labels), size)  # with what no file holds, such as rotary positions
        if not _is_preprocessing(content["preprocessing"], preprocessing(model)):
            raise BadInput(f"its crop, size or normalisation {problem}: it is damaged")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    load_finite(model, weights, path)
    return Checkpoint(weights_file(path), model.eval(), arch, labels, names, content["preprocessing"],
                      content["settings"])


def _build(arch, num_classes, size):
    model = build(arch, num_classes)
    if size:
        set_image_size(model, size)
    return model


def _is_preprocessing(config, expected):
    """Whether a checkpoint's data configuration can be that of a model whose own is `expected`."""
    if not isinstance(config, dict) or config.keys() != expected.keys():
        return False
    mean, std = config["mean"], config["std"]
    return (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3
            and all(isinstance(value, (int, float)) and math.isfinite(value)
                    for value in (config["crop_pct"], *mean, *std))
            and config["input_size"] == expected["input_size"]
            and 0.05 <= config["crop_pct"] <= 2 and min(std) > 0
            and config["interpolation"] in ("nearest", "bilinear", "bicubic", "lanczos")
            and config["crop_mode"] in ("center", "squash", "border"))
