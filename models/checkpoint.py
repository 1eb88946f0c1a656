"""The checkpoint format of p1_train.py, opened and checked.

A checkpoint is a dict saved by torch and read with `weights_only=True`:

    format          1
    arch            timm's name
    labels          the labels as the training data wrote them, in the order of the head's outputs
    class_names     a name for each
    preprocessing   input_size, interpolation, mean, std, crop_pct, crop_mode: timm's data configuration
    settings        what the run was started with
    state_dict      the weights under timm's names

so that plain timm loads it too: `timm.create_model(arch, num_classes=len(labels), checkpoint_path=FILE)`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import BadInput
from common.files import read_tensors, refuse_nonfinite_weights, refuse_other_format
from models.vit import build, preprocessing

FIELDS = {"format", "arch", "labels", "class_names", "preprocessing", "settings", "state_dict"}


def checkpoint_fields(arch, labels, class_names, preprocessing):
    """The dict described at the top of this file, all but `settings` and `state_dict`, which belong to the run's state."""
    return {"format": 1, "arch": arch, "labels": list(labels), "class_names": list(class_names),
            "preprocessing": preprocessing}


@dataclass
class Checkpoint:
    """A checkpoint, opened: the model has the weights and is in evaluation mode."""

    path: Path
    model: torch.nn.Module
    arch: str
    labels: list
    class_names: list
    preprocessing: dict
    settings: dict


def _are_names(labels, class_names):
    return (isinstance(labels, list) and isinstance(class_names, list) and len(labels) == len(class_names) > 0
            and all(isinstance(name, str) for name in [*labels, *class_names]))


def _shapes(state_dict):
    """The shapes of its tensors by key; None for what is no state dict."""
    if isinstance(state_dict, dict) and all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        return {key: value.shape for key, value in state_dict.items()}


def _is_preprocessing(found, of_model):
    """Whether a checkpoint's data configuration can be that of a model whose own is `of_model`."""
    if not isinstance(found, dict) or found.keys() != of_model.keys() or found["input_size"] != of_model["input_size"]:
        return False
    if not isinstance(found["mean"], list) or not isinstance(found["std"], list):
        return False
    numbers = [found["crop_pct"], *found["mean"], *found["std"]]
    return (len(found["mean"]) == len(found["std"]) == 3
            and all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
            and 0.05 <= numbers[0] <= 2 and min(found["std"]) > 0
            and found["interpolation"] in ("nearest", "bilinear", "bicubic", "lanczos")
            and found["crop_mode"] in ("center", "squash", "border"))


def open_checkpoint(path):
    """Open a checkpoint of `p1_train.py` for evaluation or figures. Raises BadInput for anything else."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not FIELDS <= content.keys():
        raise BadInput(f"{path} is not a checkpoint of p1_train.py: for plain weights pass --arch and --weights")
    refuse_other_format(content, path)
    arch, labels, state_dict = content["arch"], content["labels"], content["state_dict"]
    if not isinstance(arch, str) or not _are_names(labels, content["class_names"]):
        raise BadInput(f"{path} does not say which model it is, or of which classes: it is damaged")
    try:
        with torch.device("meta"):  # what a file claims takes no memory until its weights are known to fit
            model = build(arch, len(labels))
        if _shapes(state_dict) != _shapes(model.state_dict()):
            raise BadInput(f"its weights do not fit its own architecture, {arch}: it is damaged")
        if all(name in state_dict for name, _ in model.named_buffers()):
            model.to_empty(device="cpu")  # random weights first would take as long as opening the file
        else:
            model = build(arch, len(labels))
        if not _is_preprocessing(content["preprocessing"], preprocessing(model)):
            raise BadInput(f"its preprocessing does not fit its own architecture, {arch}: it is damaged")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    refuse_nonfinite_weights(state_dict, path)
    model.load_state_dict(state_dict)
    return Checkpoint(Path(path), model.eval(), content["arch"], content["labels"], content["class_names"],
                      content["preprocessing"], content["settings"])
