"""What a step of SAM costs beyond its two forward-backward passes and the step of its base optimizer.

    python -m benchmarks.sam_step
    python -m benchmarks.sam_step --precision fp32 --device cuda --arch vit_base_patch16_224 --batch-size 64

Two ways of measuring, in one run. `outside` is the time that `step(closure)` spends outside the closure and the base
optimizer, as a share of the time inside. `ratio` compares whole steps, taken in turn with two plain passes and a step
of the same base optimizer; it also has what the steps do to each other's caches, and more noise.
"""

import argparse
import statistics
import sys
import time

import timm
import torch
from torch.nn.functional import cross_entropy

from benchmarks.rows import Row
from engine.device import PRECISIONS, autocast, has_instructions_for, pick_device
from sam import SAM

GOALS = {4: 1.05, 16: 1.02}  # of the whole step, as a ratio


def measure(arch, batch_size, precision, device, steps, adaptive):
    """Returns lists over steps, in seconds: (SAM's step, of that outside, the plain passes and base step)."""
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=37).to(device)
    images = torch.randn(batch_size, *model.pretrained_cfg["input_size"], device=device)
    targets = torch.randint(0, 37, (batch_size,), device=device)
    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-6, adaptive=adaptive, model=model)
    base_step = optimizer.base_optimizer.step

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    inside = 0.0

    def timed(work):
        def call():
            nonlocal inside
            started = now()
            result = work()
            inside += now() - started
            return result

        return call

    def closure():
        optimizer.zero_grad()
        with autocast(device, precision):
            loss = cross_entropy(model(images).float(), targets)
        loss.backward()
        return loss

    ours, outside, plain = [], [], []
    for _ in range(steps + 2):
        started = now()
        closure()
        closure()
        base_step()
        plain.append(now() - started)

        started, inside = now(), 0.0
        optimizer.base_optimizer.step = timed(base_step)
        optimizer.step(timed(closure))
        ours.append(now() - started)
        outside.append(ours[-1] - inside)
    return ours[2:], outside[2:], plain[2:]  # the first ones allocate


def rows(options):
    """The rows of the table: whole steps of SAM in turn with two plain passes and a base step."""
    precision = "bf16" if has_instructions_for("bf16") else "fp32"
    for batch_size, goal in GOALS.items():
        ours, _, plain = measure(options.arch, batch_size, precision, torch.device("cpu"), options.sam_steps, adaptive=False)
        pairs = [a / b for a, b in zip(ours, plain)]
        yield Row(f"SAM step, {batch_size} images ({precision}) / two passes and a base step", pairs, "<=", goal,
                  statistics.median(ours), statistics.median(plain), "s")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vit_tiny_patch16_224", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4, 16], help="(%(default)s)")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16", help="(%(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of each kind, in turn (%(default)s)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    print(f"{args.arch}, {args.precision}, {device.type}: medians of {args.steps} steps\n")
    print("batch  optimizer  step (ms)  outside (ms)  outside   goal  ratio (quartiles)")
    for batch_size in args.batch_size:
        for adaptive in (False, True):
            ours, outside, plain = measure(args.arch, batch_size, args.precision, device, args.steps, adaptive)
            share = statistics.median(o / (whole - o) for whole, o in zip(ours, outside))
            low, middle, high = statistics.quantiles(a / b for a, b in zip(ours, plain))
            goal = f"{GOALS[batch_size] - 1:.0%}" if batch_size in GOALS else "-"
            print(f"{batch_size:5}  {'ASAM' if adaptive else 'SAM':9}  {statistics.median(ours) * 1e3:9.1f}  "
                  f"{statistics.median(outside) * 1e3:12.2f}  {share:7.2%}  {goal:>5}  "
                  f"{middle:.3f} ({low:.3f}-{high:.3f})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
