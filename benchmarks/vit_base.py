"""What a GPU makes of ViT-B/16 at 224 in bf16: how much of its arithmetic, how much memory, and whether photos keep up.

    python -m benchmarks --device cuda
    python -m benchmarks vit-base       # a tiny model on the CPU: to see that it works

Model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is the arithmetic of the forward and backward
passes alone, which SAM does twice, divided by what the device could do in the time of the step.
"""

import tempfile
import time
from pathlib import Path

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import starting
from benchmarks.rows import in_own_processes, ratio
from benchmarks.step import CLASSES
from engine.device import PRECISIONS, has_instructions_for, pick_device

PASSES = {"adam": 1, "sam": 2}
# dense bf16 products a second, by NVIDIA's data sheets; the first name that is part of the device's counts
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def flops_per_image(arch):
    """The floating-point operations of a forward and a backward pass over one image, products and sums counted apart."""
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=CLASSES)
        images = torch.empty(1, *model.pretrained_cfg["input_size"])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images).sum().backward()
    return counter.get_total_flops()


def peak_flops(device, precision):
    """What the device could do in a second: by its data sheet, or what it does in the product of two large matrices."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name and precision == "bf16":
                return peak
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=PRECISIONS[precision])
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side ** 3 / best


def rows(options):
    """The rows of the table."""
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    precision = "bf16" if on_gpu or has_instructions_for("bf16") else "fp32"
    arch, batch_size, steps = ("vit_base_patch16_224", 128, 20) if on_gpu else ("test_vit", 4, 2)
    flags = ["--arch", arch, "--batch-size", batch_size, "--precision", precision, "--device", device.type]
    flops, peak = flops_per_image(arch), peak_flops(device, precision)
    for compiled in (False, True):
        more = ["--steps", steps, *(["--compiled"] if compiled else [])]
        found = in_own_processes(options.repeats, "benchmarks.step", PASSES, *flags, *more)
        how = f"{arch}, {batch_size} images, {precision}{', torch.compile' if compiled else ''}"
        for way, passes in PASSES.items():
            done = [passes * flops * turn["images_per_second"] / 1e12 for turn in found[way]]
            yield ratio(f"FLOP utilisation, {way}, {how}", done, [peak / 1e12] * len(done), ">=", 0.45, "TFLOP/s")
        seconds = {way: [turn["seconds"] for turn in turns] for way, turns in found.items()}
        yield ratio(f"SAM step / two plain steps, {how}", seconds["sam"], [2 * each for each in seconds["adam"]],
                    "<=", 1.03, "s")
        memory = {way: [turn["memory"] / 2**20 for turn in turns] for way, turns in found.items()}
        copy = 4 * found["adam"][0]["parameters"] / 2**20
        yield ratio(f"peak memory, SAM / Adam and a copy of the weights, {how}", memory["sam"],
                    [each + copy for each in memory["adam"]], "<=", 1, "MiB")
    with tempfile.TemporaryDirectory() as work:
        starting.photo_folder(Path(work) / "train", 100 * batch_size if on_gpu else 8)
        loading = ["--data", work, "--steps", steps]
        found = in_own_processes(options.repeats, "benchmarks.training", ["photos", "ceiling"], *flags, *loading)
        yield ratio(f"training on photos / on a tensor in memory, {arch}, {batch_size} images, {precision}",
                    found["photos"], found["ceiling"], ">=", 0.95, "images/s")
