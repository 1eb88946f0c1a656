"""The device and the number format that a model runs with."""

import contextlib
import copy
import ctypes
import os
import resource
import subprocess
import sys

import torch

from common.errors import BadInput

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # the numbers of glibc's malloc.h
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name):
    """`auto`, `cpu` or `cuda` as a torch.device; `auto` is the GPU where there is one.

    On a GPU fp32 means fp32 from here on: no TF32. Raises BadInput where `cuda` finds none.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no GPU here; pass --device cpu")
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def keep_freed_memory(device):
    """For a model on the CPU, have the C library reuse freed memory instead of giving it back to the system.

    It clears each new page before a step may write to it: without this, evaluation of a ViT-Tiny in batches
    of 64 takes a quarter longer (`docs/performance.md`). Other C libraries than glibc are left as they are.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)  # with an arena for each thread, a process grows for minutes


def has_instructions_for(precision):
    """Whether this processor computes in a half precision by itself; without, fp32 is many times faster."""
    return precision == "fp32" or torch.backends.cpu.get_cpu_capability() != "AVX2"


def compute_deterministically():
    """Have torch use only algorithms that give the same bits each time.

    To be called before the GPU's first work. Some are slower; without one torch raises a RuntimeError.
    """
    # without it cuBLAS chooses among its streams' results
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def autocast(device, precision):
    """The context in which the model runs: mixed precision for `bf16` and `fp16`, nothing for `fp32`."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def peak_memory(device):
    """The most memory so far, in bytes: what torch allocated on a GPU, or all that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on a Mac, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_gpu(device):
    """The name, compute capability and driver of a GPU, as `gpu` of config.json; of the CPU nothing."""
    if device.type == "cpu":
        return {}
    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                text=True, capture_output=True, check=False).stdout.split()
    except OSError:  # not in every container
        driver = []
    return {"gpu": {"name": torch.cuda.get_device_name(device), "driver": driver[0] if driver else None,
                    "capability": "{}.{}".format(*torch.cuda.get_device_capability(device))}}


def to_device(batch, device):
    """A batch, nested lists of tensors, on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return [to_device(part, device) for part in batch]


def to_cpu(content):
    """Nested dicts and lists of tensors and other values, with the tensors on the CPU."""
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy.copy(content)  # of state dicts with their attributes
        moved.update((name, to_cpu(value)) for name, value in content.items())
        return moved
    return type(content)(map(to_cpu, content)) if isinstance(content, (list, tuple)) else content
