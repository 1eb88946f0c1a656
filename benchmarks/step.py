"""Training steps of a model by themselves, on random images: how fast they are, and how much memory they take.

    python -m benchmarks.step sam --arch vit_small_patch16_224 --batch-size 8
    torchrun --nproc-per-node 2 -m benchmarks.step joint --batch-size 8     # each process takes 8 images

The optimizer is Adam, or SAM around it; between processes `joint` is SAM that climbs along the mean gradient of all. The
last line is JSON: `seconds` of a step (the median), `images_per_second` of all processes together, `memory` that the model
took in bytes, and its number of `parameters`.
"""

import argparse
import json
import statistics
import sys
import time

import timm
import torch
from torch.nn.functional import cross_entropy

from engine import distributed
from engine.device import PRECISIONS, autocast, peak_memory, pick_device
from sam import SAM

WAYS = ("adam", "sam", "joint")
CLASSES = 37
WARM_UP = 2  # steps: the first ones allocate, and compile


def measure(way, arch, image_size, batch_size, steps, precision, device, compiled):
    """What the last line says, as a dict."""
    torch.manual_seed(0)
    before = peak_memory(device)
    options = {"img_size": image_size} if image_size else {}
    model = timm.create_model(arch, num_classes=CLASSES, **options).to(device)
    trained = distributed.data_parallel(torch.compile(model) if compiled else model)
    side = image_size or model.pretrained_cfg["input_size"][-1]
    images = torch.randn(batch_size, 3, side, side, device=device)
    targets = torch.arange(batch_size, device=device) % CLASSES
    if way == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    else:
        optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-6, model=trained, synchronised=way == "joint")

    def closure():
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = cross_entropy(trained(images).float(), targets)
        loss.backward()
        return loss

    seconds = []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        optimizer.step(closure).item()  # a number: a GPU has finished
        seconds.append(time.perf_counter() - started)
    step = statistics.median(seconds[WARM_UP:])
    return {"seconds": step, "images_per_second": batch_size * distributed.world_size() / step,
            "memory": peak_memory(device) - before, "parameters": sum(p.numel() for p in model.parameters())}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("way", choices=WAYS)
    add("--arch", default="vit_tiny_patch16_224", help="(%(default)s)")
    add("--image-size", type=int, help="if not the model's own")
    add("--batch-size", type=int, default=16, help="of each process (%(default)s)")
    add("--steps", type=int, default=5, help="that are measured (%(default)s)")
    add("--precision", choices=list(PRECISIONS), default="fp32", help="(%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="cpu", help="(%(default)s)")
    add("--compiled", action="store_true", help="with torch.compile")
    args = parser.parse_args(argv)
    device = distributed.local_device(pick_device(args.device))
    distributed.init_process_group(device)
    found = measure(args.way, args.arch, args.image_size, args.batch_size, args.steps, args.precision, device, args.compiled)
    distributed.destroy_process_group()
    if distributed.rank() == 0:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
