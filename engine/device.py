"""The device and the number format that a model runs with."""

import torch

from common.errors import BadInput

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name):
    """`auto`, `cpu` or `cuda` as a torch.device; `auto` is the GPU where there is one. No GPU for `cuda`: BadInput."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no GPU here; pass --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device, precision):
    """The context in which the model runs: mixed precision for `bf16` and `fp16`, nothing for `fp32`."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")
