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


def plant_sink(state_dict, grid, row, column):
    """Have [CLS] attend to one patch in the last block, whatever the image, in the weights of a test_vit.

    Its position embedding outshines all else in the token, and the query's bias is the key of that.
    """
    width = state_dict["norm.weight"].numel()
    direction = torch.randn(width, generator=torch.Generator().manual_seed(1))
    direction = (direction - direction.mean()) / direction.norm()
    state_dict["pos_embed"][0, 1 + row * grid[1] + column] += 1000 * direction
    last = max(int(key.split(".")[1]) for key in state_dict if key.startswith("blocks."))
    key = state_dict[f"blocks.{last}.attn.qkv.weight"][width:2 * width] @ direction
    state_dict[f"blocks.{last}.attn.qkv.bias"][:width] += 1000 * key


def write_checkpoint(path, **options):
    """Write one to a file, whose path is returned."""
    torch.save(checkpoint(**options), path)
    return path
