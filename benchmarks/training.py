"""How fast photos are trained on, against a tensor in memory and a plain loop; SAM against its two passes.

On a GPU the model is ViT-B/16. Model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)
is the arithmetic of the forward and backward passes alone by what the GPU could do in the time of the step.
"""

import csv
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import p1_train
from benchmarks.evaluation import CLASSES, photo_folder
from benchmarks.rows import in_new_process, in_turn, ratio, run_script, seconds
from engine.device import autocast, has_instructions_for, keep_freed_memory, peak_memory
from sam import SAM

# (images, torch.compile, goal for SAM's step by two passes and a base step)
SAM_ON_CPU, SAM_ON_GPU = [(4, False, 1.05), (16, False, 1.02)], [(128, False, 1.03), (128, True, 1.03)]
WARM_UP = 2  # steps: the first ones allocate, and compile
FLOPS = 105.1e9  # of ViT-B/16 for an image of 224, forward and backward, a product and its sum counted apart
# Dense bf16 FLOPs a second, by NVIDIA's data sheets; the first name that is part of the device's counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def photos(data, arch, batch_size, precision, device):
    """Images/s of p1_train.py with Adam, from its second epoch on."""
    with tempfile.TemporaryDirectory() as output:
        run_script(p1_train.main, "--data", data, "--output", output, "--arch", arch, "--scratch",
                   "--optimizer", "adam", "--epochs", 3, "--holdout", 0, "--batch-size", batch_size,
                   "--precision", precision, "--device", device.type)
        with open(Path(output) / "metrics.csv", newline="") as file:
            _, *epochs = csv.DictReader(file)
    return statistics.harmonic_mean(float(epoch["images_per_second"]) for epoch in epochs)


def plain(data, arch, batch_size):
    """Images/s of torchvision's folder, timm's transform and an fp32 loop, in one process on the CPU."""
    model = timm.create_model(arch, num_classes=CLASSES)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=True,
                                           scale=(0.5, 1), color_jitter=None)
    optimizer, ends = torch.optim.Adam(model.parameters()), []
    for images, targets in DataLoader(ImageFolder(data / "train", transform), batch_size, shuffle=True):
        optimizer.zero_grad()
        cross_entropy(model(images), targets).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return batch_size * (len(ends) - WARM_UP) / (ends[-1] - ends[WARM_UP - 1])


def steps(count, ways, arch, batch_size, precision, device, compiled=False):
    """Steps on one tensor, the `ways` in turn: ({way: [seconds, peak bytes, of each]}, bytes of the weights).

    A way is adam, sam (around it), or passes: two, forward and backward, before a step of Adam.
    """
    keep_freed_memory(device)
    model = timm.create_model(arch, num_classes=CLASSES).to(device)
    images = torch.randn(batch_size, *model.pretrained_cfg["input_size"], device=device)
    targets = torch.arange(batch_size, device=device) % CLASSES
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-6, model=model)
    forward = torch.compile(model) if compiled else model

    def closure():
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = cross_entropy(forward(images).float(), targets)
        loss.backward()
        return loss

    def step(way):
        if way == "sam":
            loss = optimizer.step(closure)
        else:
            loss = [closure() for _ in range(2 if way == "passes" else 1)][-1]
            optimizer.base_optimizer.step()
        loss.item()  # a number: a GPU has finished

    turns = {way: [] for way in ways}
    for _ in range(WARM_UP + count):
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            turns[way].append((seconds(step, way), peak_memory(device)))
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    return {way: list(zip(*turns[way][WARM_UP:])) for way in ways}, weights


def rows(options):
    """The rows of the table."""
    on_gpu = options.device.type == "cuda"
    precision = "bf16" if on_gpu or has_instructions_for("bf16") else "fp32"
    arch, batch_size, count, sam_count = ("test_vit", 4, 2, 3) if options.small else \
        ("vit_base_patch16_224", 128, 98, 30) if on_gpu else ("vit_tiny_patch16_224", 32, 10, 30)
    setting = arch, batch_size, precision, options.device
    with tempfile.TemporaryDirectory() as work:
        data = Path(work)
        photo_folder(data / "train", batch_size * (WARM_UP + count))
        sides = {"photos": (photos, data, *setting), "tensor": (steps, count, ["adam"], *setting)}
        if not on_gpu:
            sides["plain"] = plain, data, arch, batch_size
        turns = in_turn(options.repeats, **sides)
    turns["tensor"] = [batch_size / statistics.mean(measured["adam"][0]) for measured, _ in turns["tensor"]]
    for way, words, goal in (("tensor", "on a tensor in memory", 0.95), ("plain", "the plain loop, fp32", 2)):
        if way in turns:
            yield ratio(f"training on photos, {arch}, {batch_size} images, {precision} / {words}",
                        turns["photos"], turns[way], ">=", goal, "images/s")
    for size, compiled, goal in SAM_ON_GPU if on_gpu else SAM_ON_CPU:
        yield from sam_rows(goal, sam_count, arch, size, precision, options.device, compiled)


def sam_rows(goal, count, arch, batch_size, precision, device, compiled):
    """SAM in turn with two passes and a base step: the time, and on a GPU the memory and the arithmetic."""
    how = f"{arch}, {batch_size} images, {precision}{', torch.compile' if compiled else ''}"
    setting = arch, batch_size, precision, device, compiled
    measured, weights = in_new_process(steps, count, ["passes", "sam"], *setting)
    (passes, passes_peaks), (sam, sam_peaks) = measured["passes"], measured["sam"]
    yield ratio(f"SAM step / two passes and a base step, {how}", sam, passes, "<=", goal, "s")
    if device.type == "cuda":
        yield ratio(f"peak memory, SAM / Adam and a copy of the weights, {how}",
                    [peak / 2**20 for peak in sam_peaks], [(peak + weights) / 2**20 for peak in passes_peaks],
                    "<=", 1, "MiB")
        device_name = torch.cuda.get_device_name(device)
        peak = next((peak for name, peak in PEAKS.items() if name in device_name), None)
        if peak:
            flops = [2 * FLOPS * batch_size / taken for taken in sam]
            yield ratio(f"FLOP utilisation of SAM, {how}", flops, [peak] * len(flops), ">=", 0.45, "FLOP/s")
