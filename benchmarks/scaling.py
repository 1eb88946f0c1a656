"""How speed changes with the sizes of batch, image and model and with the number of processes: a figure and its numbers.

    python -m benchmarks.scaling --output scaling.png     # and scaling.json; about 8 minutes on 2 cores
    python -m benchmarks.scaling --device cuda --precision bf16 --output scaling.png

Steps of Adam and of SAM around it by `benchmarks.step`, in turn, each in a process of its own. What several machines would
make of it is computed: from a step's time and the size of the gradient, see `efficiency`.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import in_own_process, in_own_processes, in_turn
from benchmarks.vit_base import PEAKS, flops_per_image
from common.cli import reports_errors
from common.files import written_whole
from engine.device import PRECISIONS, pick_device
from plots.scaling import draw_scaling

ARCHS = ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"]
SWEEPS = {"batch size": ("--batch-size", [1, 2, 4, 8, 16, 32, 64]), "image size": ("--image-size", [96, 160, 224, 288, 384]),
          "model": ("--arch", ARCHS)}
SMALL = {"batch size": ("--batch-size", [1, 2]), "image size": ("--image-size", [96, 160]), "model": ("--arch", ["test_vit"])}

PER_MACHINE = 8  # GPUs
# bytes/s that a GPU sends: over NVLink 4, and over a card of 400 Gbit/s for each GPU (NVIDIA's data sheet of the DGX H100)
WITHIN, ACROSS = 450e9, 50e9
EXCHANGES = {"local": 1, "synchronised": 2}  # of gradients in a step of SAM, by what it climbs along
GPUS = [8, 64]


def exchange_seconds(size, gpus):
    """The time in which `gpus` GPUs average a gradient of `size` bytes, at the best speed of their connections.

    In a ring each of n sends 2 (n - 1) / n of what is averaged (Patarasuk and Yuan 2009, section 3). Within a machine of
    `PER_MACHINE` that is the gradient; across machines, where there are several, a GPU's share of it.
    """
    within = min(gpus, PER_MACHINE)
    machines = gpus // within
    return 2 * (within - 1) / within * size / WITHIN + 2 * (machines - 1) / machines * size / within / ACROSS


def efficiency(step_seconds, size, gpus, exchanges):
    """At least this share of `gpus` times the speed of one GPU: as if no exchange went beside a backward pass."""
    return step_seconds / (step_seconds + exchanges * exchange_seconds(size, gpus))


def medians(turns):
    """The median of each value over several turns, dicts of the same keys."""
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


def measure_sweep(parts, flags, repeats):
    """A point for each value and optimizer: dicts of the value, the optimizer and what `benchmarks.step` measured."""
    name, values = parts
    for value in values:
        found = in_own_processes(repeats, "benchmarks.step", ["adam", "sam"], *flags, name, value)
        for way, turns in found.items():
            yield {"value": value, "optimizer": way, **medians(turns)}


def measure_processes(batch_size, flags, repeats):
    """The same number of images a step by one process and by two, where each has half of them: dicts as above."""
    def call(way, processes):
        launcher = ["torch.distributed.run", "--nproc-per-node", processes, "-m"] if processes > 1 else []
        return partial(in_own_process, *launcher, "benchmarks.step", way, *flags, "--batch-size", batch_size // processes)

    ways = [("adam", 1), ("adam", 2), ("sam", 1), ("sam", 2), ("joint", 2)]
    found = in_turn(repeats, {way: call(*way) for way in ways})
    for (way, processes), turns in found.items():
        yield {"value": processes, "optimizer": way, **medians(turns)}


def on_paper(points):
    """The expected efficiency of SAM on many GPUs, for the measured steps of the largest model and a step at the goal.

    `points` are those of the models. The goal is 45 % of an H100's arithmetic, with 64 images a GPU.
    """
    largest = max(points, key=lambda point: point["parameters"])
    size = 4 * largest["parameters"]  # gradients in fp32
    measured = next(point for point in points if point["value"] == largest["value"] and point["optimizer"] == "sam")
    goal = 2 * flops_per_image(largest["value"]) * 64 / (0.45 * PEAKS["H100"])
    steps = {"measured here": measured["seconds"], "45 % of an H100": goal}
    return {"arch": largest["value"], "gradient_bytes": size, "steps": [
        {"step": name, "seconds": seconds, "gpus": gpus, "climb": climb,
         "efficiency": efficiency(seconds, size, gpus, exchanges)}
        for name, seconds in steps.items() for gpus in GPUS for climb, exchanges in EXCHANGES.items()]}


def get_args_parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.{png,pdf,svg}", help="the figure; its numbers go to FILE.json")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    add("--precision", choices=list(PRECISIONS), default="fp32", help="(%(default)s)")
    add("--batch-size", type=int, default=8, help="where it does not change (%(default)s); with processes twice as many")
    add("--steps", type=int, default=3, help="that are measured of each (%(default)s)")
    add("--repeats", type=int, default=1, metavar="N", help="turns (%(default)s)")
    add("--small", action="store_true", help="few sizes of a tiny model: to see that it works")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    device = pick_device(args.device)
    sweeps, arch = (SMALL, "test_vit") if args.small else (SWEEPS, ARCHS[0])
    flags = ["--device", device.type, "--precision", args.precision, "--steps", args.steps]
    found = {"device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
             "arch": arch, "precision": args.precision, "batch_size": args.batch_size}
    for name, parts in sweeps.items():
        own = flags if name == "batch size" else [*flags, "--batch-size", args.batch_size]
        own = own if name == "model" else [*own, "--arch", arch]
        found[name] = told(name, measure_sweep(parts, own, args.repeats))
    if device.type == "cpu" or torch.cuda.device_count() > 1:
        found["processes"] = told("processes", measure_processes(2 * args.batch_size, [*flags, "--arch", arch], args.repeats))
    found["paper"] = on_paper(found["model"])
    for row in found["paper"]["steps"]:
        print(f"{row['step']:30} {row['seconds']:8.3f} s  {row['gpus']:2} GPUs, {row['climb']:12} "
              f"at least {row['efficiency']:.1%}")
    with written_whole(args.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    seconds = np.geomspace(1e-3, 10, 60)
    curves = {(gpus, climb): efficiency(seconds, found["paper"]["gradient_bytes"], gpus, exchanges)
              for gpus in GPUS for climb, exchanges in EXCHANGES.items()}
    with written_whole(args.output) as temporary:
        draw_scaling(found, seconds, curves).savefig(temporary, dpi=150)
    return 0


def told(name, points):
    """A list of the points; each is printed as it comes."""
    points_seen = []
    for point in points:
        print(f"{name:10} {point['value']!s:24} {point['optimizer']:6} {point['images_per_second']:8.1f} images/s "
              f"{point['memory'] / 2**20:8.0f} MiB", flush=True)
        points_seen.append(point)
    return points_seen


if __name__ == "__main__":
    sys.exit(main())
