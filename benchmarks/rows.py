"""A row of the table: two things measured in turn in one run, the ratio of their times, and the goal for it."""

import json
import operator
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HOLDS = {">=": operator.ge, "<=": operator.le}


@dataclass
class Row:
    """`values` has one a turn: ratios, or seconds where there is nothing to compare with. `unit` is that of `ours` and
    `other`, the medians."""

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
        return HOLDS[self.op](self.value, self.goal)

    def as_json(self):
        return {"what": self.what, "value": self.value, "op": self.op, "goal": self.goal, "met": self.met,
                "spread": [min(self.values), max(self.values)], "ours": self.ours, "other": self.other, "unit": self.unit}

    def __str__(self):
        goal, met = f"{self.op} {self.goal:g}", "yes" if self.met else "NO"
        measured = "".join(f"{'' if value is None else f'{value:.4g}':>9}" for value in (self.ours, self.other))
        spread = f"{min(self.values):.3g} to {max(self.values):.3g}"
        return f"{self.what:62}{measured} {self.unit:8} {self.value:7.3g}  {goal:8} {met:4} {spread}"


HEADING = f"{'what':62}{'ours':>9}{'other':>9} {'unit':8} {'value':>7}  {'goal':8} {'met':4} spread"


def ratio(what, ours, other, op, goal, unit, inverted=False):
    """A Row of the quotients ours / other of each turn, or other / ours if `inverted`."""
    pairs = zip(other, ours) if inverted else zip(ours, other)
    return Row(what, [a / b for a, b in pairs], op, goal, statistics.median(ours), statistics.median(other), unit)


def in_turn(repeats, ways):
    """Call each of the `ways` once a turn: a dict from their names to what they returned in each."""
    found = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    return found


def in_own_processes(repeats, module, ways, *args):
    """The same for `python -m module way args`, each time in a process of its own."""
    return in_turn(repeats, {way: partial(in_own_process, module, way, *args) for way in ways})


def in_own_process(module, *args):
    """What `python -m module args` prints last, as JSON: so that nothing that another way left in memory helps or hurts.

    Raises RuntimeError with what it said where it fails.
    """
    done = subprocess.run([sys.executable, "-m", module, *map(str, args)], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, args))} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
