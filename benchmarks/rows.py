"""A row of the table: two things measured in turn in one run, their ratio, and the goal for it."""

import contextlib
import io
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING = f"{'what':68}{'ours':>8}{'other':>8} {'unit':10} {'value':>7}  {'goal':7} {'met':3} spread"


@dataclass
class Row:
    """`values` has one a turn: ratios, or seconds where there is nothing to compare with.

    `ours` and `other` are the medians of the two sides, in `unit`.
    """

    what: str
    values: list
    op: str
    goal: float
    ours: float | None = None
    other: float | None = None
    unit: str = ""

    @property
    def value(self):
        return statistics.median(self.values)

    @property
    def met(self):
        return self.value >= self.goal if self.op == ">=" else self.value <= self.goal

    @property
    def spread(self):
        return [min(self.values), max(self.values)]

    def as_json(self):
        names = ("what", "value", "op", "goal", "met", "spread", "ours", "other", "unit")
        return {name: getattr(self, name) for name in names}

    def __str__(self):
        sides = "".join(f"{'' if side is None else f'{side:.4g}':>8}" for side in (self.ours, self.other))
        return (f"{self.what:68}{sides} {self.unit:10} {self.value:7.3g}  {f'{self.op} {self.goal:g}':7} "
                f"{'yes' if self.met else 'NO':3} {self.spread[0]:.3g} to {self.spread[1]:.3g}")


def ratio(what, ours, other, op, goal, unit):
    """A Row of the quotients ours / other of each turn."""
    quotients = [a / b for a, b in zip(ours, other, strict=True)]
    return Row(what, quotients, op, goal, statistics.median(ours), statistics.median(other), unit)


def in_turn(repeats, **ways):
    """Call each way, (function, *args), once a turn in a new process: {name: list of what it returned}."""
    results = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            results[name].append(in_new_process(*call))
    return results


def in_new_process(function, *args):
    """What `function(*args)` returns with nothing in memory that another call left. Or CalledProcessError."""
    code = ("import pickle, sys; function, args = pickle.load(sys.stdin.buffer)\n"
            "pickle.dump(function(*args), sys.stdout.buffer)")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps((function, args)),
                          stdout=subprocess.PIPE, cwd=ROOT, check=True)
    return pickle.loads(done.stdout)


def seconds(function, *args):
    """How long a call takes."""
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def peak_mib(script, *args):
    """MiB that a script, or the largest of its processes, held at most.

    For a new process to call, once: Linux counts a child from what its parent held when it started it.
    """
    with tempfile.TemporaryDirectory() as work:
        subprocess.check_output([sys.executable, ROOT / script, *map(str, args)], cwd=work)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def run_script(main, *args):
    """Call a script's `main` quietly. Raises RuntimeError with what it printed unless it returns 0."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        code = main([str(each) for each in args])
    if code:
        raise RuntimeError(output.getvalue())
