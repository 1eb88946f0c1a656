"""A row of the table: two things measured in turn in one run, their ratio, and the goal for it."""

import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from common.machine import usable_cores

ROOT = Path(__file__).resolve().parent.parent
HEADING = f"{'what':76}{'ours':>8}{'other':>8} {'unit':10} {'value':>7}  {'goal':7} {'met':3} spread"


def processor(device):
    """What a table was measured with: the GPU, or the processor and its instructions; torch."""
    import torch  # --help need not wait for it

    from engine.device import default_precision

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        bf16 = ", with instructions for bf16" * (default_precision(device) == "bf16")
        name = (f"{usable_cores()} cores {found[1] if found else platform.processor()}, "
                f"{torch.backends.cpu.get_cpu_capability()}{bf16}")
    return f"{name}; torch {torch.__version__}"


def row(what, unit, op, goal, ours, other=None):
    """The quotients ours / other, each with a number a turn, or `ours` alone, as the fields of a row.

    `value` and `spread` (least, most) are over the turns; `ours` and `other` are medians in `unit`.
    """
    values = [a / b for a, b in zip(ours, other, strict=True)] if other else ours
    value = median(values)
    return SimpleNamespace(what=what, value=value, op=op, goal=goal,
                           met=value >= goal if op == ">=" else value <= goal,
                           spread=[min(values), max(values)], ours=median(ours),
                           other=median(other) if other else None, unit=unit)


def line(row):
    """The row as text below HEADING."""
    other = f"{row.other:.4g}" if row.other else ""
    return (f"{row.what:76}{row.ours:8.4g}{other:>8} {row.unit:10} {row.value:7.3g}  "
            f"{f'{row.op} {row.goal:g}':7} {'yes' if row.met else 'NO':3} "
            f"{row.spread[0]:.3g} to {row.spread[1]:.3g}")


def compare(repeats, what, unit, ours, *others, op=">=", equal=lambda a, b: a == b):
    """Yield the row of `ours`, (function, *args), against each of `others`, (words, goal, function, *args).

    A function returns (number in `unit`, result). All are called in turn, in new processes. Raises
    RuntimeError where a result, unless it is None, is not equal to ours.
    """
    calls = ours, *(call for _, _, *call in others)
    turns = [[in_new_process(*call) for call in calls] for _ in range(repeats)]
    (numbers, results), *measured = (zip(*way) for way in zip(*turns))
    for (words, goal, *_), (other_numbers, other_results) in zip(others, measured):
        if any(b is not None and not equal(a, b) for a, b in zip(results, other_results)):
            raise RuntimeError(f"{what} / {words}: the results differ")
        yield row(f"{what} / {words}", unit, op, goal, numbers, other_numbers)


def in_new_process(function, *args):
    """What `function(*args)` returns with nothing in memory that another call left; it prints to stderr."""
    with ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (2, 1)) as pool:
        return pool.submit(function, *args).result()


def pace(count, function, *args):
    """A call that does `count` things: (how many a second, what it returns)."""
    started = time.perf_counter()
    result = function(*args)
    return count / (time.perf_counter() - started), result


def seconds(function, *args):
    return 1 / pace(1, function, *args)[0]


def peak_mib(script, *args):
    """(MiB that a script, or the largest of its processes, held at most, None).

    For a new process to call, once: Linux counts a child from what its parent held when it started it.
    """
    with tempfile.TemporaryDirectory() as work:
        subprocess.check_output([sys.executable, ROOT / script, *map(str, args)], cwd=work)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, None
