"""The device and the number format that a model runs with, and the processes that feed it."""

import os
import resource

import torch

from common.errors import BadInput

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name):
    """`auto`, `cpu` or `cuda` as a torch.device; `auto` is the GPU where there is one. No GPU for `cuda`: BadInput."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no GPU here; pass --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def compute_deterministically():
    """Have torch use only algorithms that give the same bits each time. To be called before the GPU's first work.

    On a GPU some are slower; torch raises a RuntimeError for an operation that has none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS chooses among its streams' results
    torch.use_deterministic_algorithms(True)


def autocast(device, precision):
    """The context in which the model runs: mixed precision for `bf16` and `fp16`, nothing for `fp32`."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def loader_workers(number):
    """The number of processes that load images: `number`, or one for each core that we may use, at most 8, for None.

    Processes that torchrun started on this machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(8, cores)) if number is None else number


def peak_memory(device):
    """The most memory so far, in bytes: of a GPU, what torch allocated on it; on the CPU, all that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
