"""Checkpoints that no training run had to make."""

import timm
import torch

from models import vit
from models.checkpoint import checkpoint_fields

CLASSES = ["cross", "heart", "ring", "star"]  # of the fixture `shapes`


def checkpoint(arch="test_vit", class_names=CLASSES, **changes):
    """The content of a checkpoint: random weights, labels from 0, and `changes` of its fields."""
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=len(class_names))
    labels = [str(label) for label in range(len(class_names))]
    return {**checkpoint_fields(arch, labels, class_names, vit.preprocessing(model)), "settings": {},
            "state_dict": model.state_dict(), **changes}


def write_checkpoint(path, **options):
    """Write one to a file, whose path is returned."""
    torch.save(checkpoint(**options), path)
    return path
