"""The device and the number format that a model runs with."""

import contextlib
import copy
import ctypes
import os
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from common import machine
from common.cli import note
from common.errors import BadInput

M_ARENA_MAX = -8  # the number of glibc's malloc.h
GPU_FILES = "nvidia[0-9]*"  # in /dev, where Linux has a driver
BF16_INSTRUCTIONS = "_is_avx512_bf16_supported", "_is_amx_tile_supported"  # of torch.cpu
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Kernels from compute capability 5.0 to 9.0, and a driver of CUDA 12.0 suffices: torch.cuda's own table.
CUDA_12 = "pip install torch==2.12.1 torchvision==0.27.1 --index-url https://download.pytorch.org/whl/cu126"


def pick_device(name):
    """`auto`, `cpu` or `cuda` as a torch.device; `auto` is the GPU where there is one that torch can use.

    A note says why it cannot. On a GPU fp32 means fp32 from here on: no TF32. Raises BadInput where `cuda`
    finds none.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says the same in paragraphs
        problem = _gpu_problem()
    usable = torch.cuda.is_available() and not problem
    if name == "cuda" and not usable:
        raise BadInput(f"--device cuda: {problem or 'torch finds no GPU here'}; or pass --device cpu")
    if problem:
        note(f"{problem}. Going on without the GPU")
    return torch.device("cuda" if usable else "cpu")


def _gpu_problem():
    """Why torch cannot use this machine's GPU, and what to do; empty where it can, or where there is none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _driver_problem(str(error))
    major, minor = torch.cuda.get_device_capability()
    built = sorted((int(number), kind) for kind, number in re.findall(
        r"(sm|compute)_(\d+)", " ".join(torch.cuda.get_arch_list())))
    # machine code runs on newer cards of the same major version, PTX on all newer ones
    if not built or any(number <= 10 * major + minor and (kind == "compute" or number // 10 == major)
                        for number, kind in built):
        return ""
    lowest, highest = built[0][0] / 10, built[-1][0] / 10
    return (f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and this torch has "
            f"kernels for {lowest} to {highest}: {CUDA_12 if major < lowest else 'install a newer torch'}")


def _driver_problem(reason):
    """As `_gpu_problem`, where `torch.cuda.init` says for what `reason` it failed."""
    if found := re.search(r"driver on your system is too old \(found version (\d+)", reason):
        version = int(found[1])
        driver, way_out = f"{version // 1000}.{version % 1000 // 10}", f", or {CUDA_12}" * (version >= 12000)
        return (f"the NVIDIA driver is of CUDA {driver}, and this torch is of {torch.version.cuda}: "
                f"update the driver{way_out}")
    if "No CUDA GPUs" in reason or not any(Path("/dev").glob(GPU_FILES)):
        return ""
    if "not compiled with CUDA" in reason:
        return "this torch was built without CUDA: pip install -r requirements.txt in a new environment"
    return f"the GPU or its driver does not work ({reason.partition('.')[0]}): see what nvidia-smi says"


def keep_freed_memory(device):
    """For evaluation on the CPU, have the C library reuse freed memory instead of giving it to the system.

    It clears each new page before a model may write to it: without this, evaluation of a ViT-Tiny in batches
    of 64 takes a quarter longer. Training gains nothing, and in bf16 loses half of its speed by the single
    arena (`docs/performance.md`). Other C libraries than glibc are left as they are.
    """
    if device.type != "cpu":
        return
    machine.keep_freed_memory()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # with one a thread, a process grows for minutes


def fastest_precision(device):
    """The precision in which a device computes fastest, by instructions of its own."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return "bf16" if any(getattr(torch.cpu, name, bool)() for name in BF16_INSTRUCTIONS) else "fp32"


def default_precision(device):
    """What `--precision auto` stands for. fp16 is for those who ask for it: small gradients vanish in it."""
    return "bf16" if fastest_precision(device) == "bf16" else "fp32"


def is_slow(precision, device):
    """Whether a device computes many times faster in its `fastest_precision`."""
    return precision not in (fastest_precision(device), "fp16" if device.type == "cuda" else "fp32")


def compiled(model, device):
    """A module that runs a model as torch.compile makes it faster; evaluation takes the model itself.

    Of batches a second size has a graph for all others. Raises BadInput where torch.compile does not work.
    """
    try:
        torch.compile(torch.add)(torch.ones(2, device=device), 1)
    except RuntimeError as error:  # no compiler, above all
        reason = str(error).split(" raised:\n")[-1].partition("\n")[0]
        raise BadInput(f"--compile does not work here: {reason}: mend that, or leave it out") from error
    return torch.compile(model)


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
