"""How much memory fine-tuning takes, and how long, by arithmetic on tensors that have no content."""

import ctypes
from functools import partial

import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evaluation import CLASSES
from engine.device import autocast
from sam import SAM

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
CPU = torch.device("cpu")
ARCHS, SIZES = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")], (224, 384)
BATCH_SIZE, PHOTOS = 32, 3680
WAYS = [(sam, precision) for precision in ("bf16", "fp32") for sam in (False, True)]
# Dense TFLOP/s in half precision, fp16 on the T4 and else bf16, by NVIDIA's data sheets; and the part in use.
PEAKS, MFU = {"T4": 65, "RTX 4090": 165, "A100": 312, "H100": 989}, 0.3


def to_fake(model, device):
    """A model from the meta device with its tensors made anew, in the FakeTensorMode at hand."""
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            fake = torch.empty(value.shape, dtype=value.dtype, device=device)
            setattr(module, name, nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake)
    return model


def stepper(model, size, batch_size, sam, precision, before=lambda: None):
    """(The optimizer, the images, a function that takes a step); `before` is called before each pass."""
    images, targets = torch.zeros(batch_size, 3, size, size), torch.zeros(batch_size, dtype=torch.long)
    # fused, because the other ways read numbers, which a fake tensor has none of
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-4, model=model, fused=True)

    def closure():
        before()
        optimizer.zero_grad()
        with autocast(CPU, precision):
            loss = cross_entropy(model(images).float(), targets)
        loss.backward()

    return optimizer, images, partial((optimizer if sam else optimizer.base_optimizer).step, closure)


def estimate(arch, *setting):
    """The most bytes that a step holds, by MemTracker; the setting is that of `stepper`."""
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=CLASSES, img_size=setting[0])
    tracker = MemTracker()
    with FakeTensorMode():
        optimizer, images, step = stepper(to_fake(model, CPU), *setting, before=tracker.reset_mod_stats)
        step()  # makes the optimizer's state
        optimizer.zero_grad()
        tracker.track_external(model, optimizer.base_optimizer, images)
        with tracker:
            step()
    return sum(each["Total"] for each in tracker.get_tracker_snapshot("peak").values())


def measure(arch, *setting):
    """The same of this process, which is to be a new one, in fact: beyond what it held before."""
    def held(what):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024

    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # gives back at once what is freed
    build = partial(timm.create_model, arch, num_classes=CLASSES, img_size=setting[0])
    stepper(build(), setting[0], 1, *setting[2:])[2]()  # loads the libraries
    before = held("VmRSS")
    _, _, step = stepper(build(), *setting)
    step()
    step()
    return held("VmHWM") - before


def flops(arch, size):
    """Of an image, forward and backward: a product and its sum counted apart."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = timm.create_model(arch, num_classes=CLASSES, img_size=size)
        model(torch.zeros(1, 3, size, size)).sum().backward()
    return counter.get_total_flops()


def table(small):
    """Yield the lines of the table in docs/performance.md: GiB, and with Adam TFLOP and seconds an epoch."""
    ways = [f"{'SAM' if sam else 'Adam'} {precision}" for sam, precision in WAYS]
    yield "| " + " | ".join(["model", "pixels", *ways, "TFLOP", *PEAKS]) + " |"
    yield "|---" * (3 + len(WAYS) + len(PEAKS)) + "|"
    for arch in ["test_vit"] if small else ARCHS:
        for size in SIZES:
            gib = [estimate(arch, size, BATCH_SIZE, *way) / 2**30 for way in WAYS]
            work = flops(arch, size) * PHOTOS / 1e12
            seconds = [work / (peak * MFU) for peak in PEAKS.values()]
            cells = [arch.removesuffix("_patch16_224"), size, *(f"{each:.1f}" for each in gib), f"{work:.0f}",
                     *(f"{each:.1f}" for each in seconds)]
            yield "| " + " | ".join(map(str, cells)) + " |"
