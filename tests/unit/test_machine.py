"""What a process may count on where it runs."""

import os

import pytest

from common import machine


@pytest.mark.parametrize("variables, rank, ranks", [
    ({}, 0, 1), ({"RANK": "1", "WORLD_SIZE": "3"}, 1, 3),
    ({"WORLD_SIZE": "2"}, 0, 1), ({"RANK": "1"}, 0, 1), ({"RANK": "", "WORLD_SIZE": "2"}, 0, 1)])
def test_a_process_without_both_variables_of_torchrun_is_alone(monkeypatch, variables, rank, ranks):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (machine.rank(), machine.world_size()) == (rank, ranks)
    assert machine.ranks_here() == (2 if ranks > 1 else 1)


def test_cores_are_those_that_this_process_may_use_and_all_on_a_mac(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7})
    assert machine.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.usable_cores() == os.cpu_count()
