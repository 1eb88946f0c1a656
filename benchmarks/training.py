"""How fast photos are loaded, against timm's loader, and trained on, against a tensor in memory; our step
against a plain one, and SAM's against its two passes; the probe.

On a GPU the model is ViT-B/16. Model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)
is the arithmetic of the forward and backward passes alone by what the GPU could do in the time of the step.
"""

import csv
import tempfile
from pathlib import Path
from statistics import harmonic_mean, mean

import numpy as np
import timm
import torch
from torch.nn.functional import cross_entropy

import p1_train
from benchmarks.evaluation import CLASSES, CPU, photo_folder
from benchmarks.rows import compare, in_new_process, pace, row, seconds
from datasets.images import ImageDataset, read_training_folder
from datasets.transforms import training_transform
from engine.device import autocast, default_precision, peak_memory
from engine.loader import Loader
from engine.seeding import ShuffledBatches
from engine.step import OptimizerStep
from models.losses import ClassificationLoss
from models.probe import fit_probe
from models.vit import preprocessing
from sam import SAM

SAM_STEPS = {"cpu": [(4, False, 1.05), (16, False, 1.02)],  # images, whether torch.compile, goal
             "cuda": [(128, False, 1.03), (128, True, 1.03)]}
WARM_UP = 2  # steps: the first ones allocate, and compile
PROBES = {192: 15, 768: 60}  # seconds by the number of features
CLOSE = 0.3  # the distance of two classes by that of two photos of one: a probe is right in about 0.9
FLOPS = 105.1e9  # of ViT-B/16 for an image of 224, forward and backward, a product and its sum counted apart
# Dense bf16 FLOPs a second, by NVIDIA's data sheets; the first name that is part of the device's counts,
# but for a MIG slice, which has a part of it.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def photos(data, arch, batch_size, precision, device):
    """(Images/s of p1_train.py with Adam, from its second epoch on, None)."""
    output = tempfile.mkdtemp(dir=data)
    flags = f"--arch {arch} --scratch --optimizer adam --epochs 3 --holdout 0 --batch-size {batch_size} " \
            f"--precision {precision} --device {device.type}"
    p1_train.main(["--data", str(data), "--output", output, *flags.split()])
    with open(Path(output) / "metrics.csv", newline="") as file:
        _, *epochs = csv.DictReader(file)
    return harmonic_mean(float(epoch["images_per_second"]) for epoch in epochs), None


def tensor(count, arch, batch_size, *setting):
    """(Images/s of steps with Adam on one tensor, None)."""
    times, _ = zip(*steps(count, ["step"], arch, batch_size, *setting)["step"])
    return batch_size / mean(times), None


def loading(root, arch, batch_size):
    """(Photos/s of a process that loads them as p1_train.py does, None)."""
    folder = read_training_folder(root, root / "classes.txt")
    transform = training_transform(preprocessing(timm.create_model(arch)))
    return second_epoch(Loader(
        ImageDataset(root, folder.names, folder.targets, transform, seed=0), 1, CPU,
        batch_sampler=ShuffledBatches(len(folder.names), batch_size, seed=0), persistent_workers=True))


def timms_loading(root, arch, batch_size):
    """(Photos/s of a process of timm's own loader, with the same transforms, None)."""
    return second_epoch(timm.data.create_loader(
        timm.data.ImageDataset(str(root)), batch_size=batch_size, is_training=True, scale=(0.5, 1),
        color_jitter=None, device=CPU, **timm.data.resolve_model_data_config(timm.create_model(arch))).loader)


def second_epoch(loader):
    """(Photos/s of a loader, as pixels, from files that the system has in its cache by then, None)."""
    return [pace(len(loader.dataset), lambda: [None for _ in loader])[0] for _ in range(2)][1], None


def steps(count, ways, arch, batch_size, precision, device, compiled=False):
    """Steps on one tensor, the `ways` in turn: {way: (seconds, peak MiB) of each}.

    A way is step, ours with Adam; plain, the same written out; sam, SAM around Adam; or passes: two, forward
    and backward, before a step of Adam.
    """
    model = timm.create_model(arch, num_classes=CLASSES).to(device)
    images = torch.randn(batch_size, *model.pretrained_cfg["input_size"], device=device)
    targets = torch.arange(batch_size, device=device) % CLASSES
    sam = SAM(model.parameters(), torch.optim.Adam, lr=1e-6, model=model)
    forward = torch.compile(model) if compiled else model
    take_step = OptimizerStep(forward, sam.base_optimizer, torch.amp.GradScaler(device.type, enabled=False),
                              ClassificationLoss(0), device, precision)

    def closure():
        sam.zero_grad()
        with autocast(device, precision):
            loss = cross_entropy(forward(images).float(), targets)
        loss.backward()
        return loss

    def step(way):
        if way == "step":
            take_step([(images, targets)], batch_size)
        elif way == "sam":
            sam.step(closure).item()  # a number: a GPU has finished
        else:
            loss = [closure() for _ in range(2 if way == "passes" else 1)][-1]
            sam.base_optimizer.step()
            loss.item()

    turns = {way: [] for way in ways}
    for _ in range(WARM_UP + count):
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            turns[way].append((seconds(step, way), peak_memory(device) / 2**20))
    return {way: turns[way][WARM_UP:] for way in ways}


def step_row(count, arch, batch_size, precision, device):
    """Our step in turn with a plain one."""
    ways = in_new_process(steps, count, ["step", "plain"], arch, batch_size, precision, device)
    (plain, _), (ours, _) = (zip(*ways[way]) for way in ("plain", "step"))
    return row(f"a step / the same written out, {arch}, {batch_size} images, {precision}", "steps/s", ">=",
               0.98, [1 / each for each in ours], [1 / each for each in plain])


def sam_rows(goal, count, arch, batch_size, precision, device, compiled):
    """SAM in turn with two passes and a base step: the time, and on a GPU the memory and the arithmetic."""
    how = f"{arch}, {batch_size} images, {precision}{', torch.compile' if compiled else ''}"
    ways = in_new_process(steps, count, ["passes", "sam"], arch, batch_size, precision, device, compiled)
    (passes, peaks), (sam, sam_peaks) = (zip(*ways[way]) for way in ("passes", "sam"))
    yield row(f"SAM step / two passes and a base step, {how}", "s", "<=", goal, sam, passes)
    if device.type == "cuda":
        parameters = timm.create_model(arch, num_classes=CLASSES).parameters()
        weights = sum(each.numel() for each in parameters) / 2**18
        yield row(f"peak memory, SAM / Adam and a copy of the weights, {how}", "MiB", "<=", 1, sam_peaks,
                  [peak + weights for peak in peaks])
        name = torch.cuda.get_device_name(device)
        for peak in [PEAKS[part] for part in PEAKS if part in name and "MIG" not in name][:1]:
            yield row(f"FLOP utilisation of SAM, {how}", "FLOP/s", ">=", 0.45,
                      [2 * FLOPS * batch_size / taken for taken in sam], [peak] * len(sam))


def probe_seconds(photos, width):
    """What fitting a probe to features takes whose spectrum falls as that of a ViT's on photos of pets."""
    generator = np.random.default_rng(0)
    targets, means = np.arange(photos) % CLASSES, CLOSE * generator.standard_normal((CLASSES, width))
    spectrum = np.arange(1, width + 1) ** -0.5
    features = (means[targets] + generator.standard_normal((photos, width))) * spectrum
    return seconds(fit_probe, features, targets, (means / spectrum, np.zeros(CLASSES)))


def training(options, work):
    on_gpu = options.device.type == "cuda"
    precision = default_precision(options.device)
    arch, batch_size, count, sam_count = ("test_vit", 4, 2, 3) if options.small else \
        ("vit_base_patch16_224", 128, 98, 30) if on_gpu else ("vit_tiny_patch16_224", 32, 10, 30)
    setting = arch, batch_size, precision, options.device
    photo_folder(work / "train", batch_size * (WARM_UP + count))
    yield from compare(
        options.repeats, f"training on photos, {arch}, {batch_size} images, {precision}", "images/s",
        (photos, work, *setting), ("on a tensor in memory", 0.93, tensor, count, *setting))
    yield from compare(options.repeats, f"loading photos by one process, {batch_size} images", "images/s",
                       (loading, work / "train", arch, batch_size),
                       ("timm's loader", 0.95, timms_loading, work / "train", arch, batch_size))
    for each in dict.fromkeys(["fp32", precision]):
        yield step_row(sam_count, arch, batch_size, each, options.device)
    for size, compiled, goal in SAM_STEPS[options.device.type]:
        yield from sam_rows(goal, sam_count, arch, size, precision, options.device, compiled)
    probed = 74 if options.small else 3680
    for width, goal in PROBES.items():
        yield row(f"a probe of {probed:,} photos, {width} features", "s", "<=", goal, [
            in_new_process(probe_seconds, probed, width) for _ in range(options.repeats)])
