"""How many processes load images."""

import os
from types import SimpleNamespace

import pytest

from common.errors import BadInput
from engine import loader
from engine.loader import loader_workers

MIB = 2**20


@pytest.fixture
def memory(monkeypatch):
    """A function that says how many bytes of shared memory are free, on a machine of four cores."""
    def free(size):
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=size // 512, f_frsize=512))

    monkeypatch.setattr(loader, "usable_cores", lambda: 4)
    free(2**40)
    return free


def test_there_is_one_a_core_at_most_sixteen_or_as_many_as_are_asked_for(memory, monkeypatch):
    assert [loader_workers(number, MIB) for number in (None, 0, 1, 30)] == [4, 0, 1, 30]
    monkeypatch.setattr(loader, "usable_cores", lambda: 100)
    assert loader_workers(None, MIB) == 16
    monkeypatch.setattr(loader, "ranks_here", lambda: 50)
    assert loader_workers(None, MIB) == 2
    monkeypatch.setattr(loader, "ranks_here", lambda: 200)
    assert loader_workers(None, MIB) == 1


@pytest.mark.parametrize("free, fitting", [(2, 0), (3, 1), (4, 1), (7, 3), (8, 3), (9, 4)])
def test_no_more_than_fit_into_shared_memory_with_two_batches_each_and_those_in_use(
        memory, capsys, free, fitting):
    memory(free * MIB)
    assert loader_workers(None, MIB, held=1) == fitting
    error = capsys.readouterr().err
    note = f"note: 4 processes that load images need 9 MiB of /dev/shm, which has {free} MiB free: --workers"
    assert error.startswith(f"{note} {fitting} ") if free < 9 else not error


def test_a_number_that_does_not_fit_is_refused_with_the_ways_out(memory, monkeypatch):
    memory(64 * MIB)
    with pytest.raises(BadInput, match=r"--workers 2: .* need 108 MiB of /dev/shm, which has 64 MiB free: "
                                       r"pass --workers 0, or .*--shm-size"):
        loader_workers(2, 18 * MIB)
    assert loader_workers(0, 18 * MIB) == 0
    monkeypatch.setattr(loader, "ranks_here", lambda: 4)  # a quarter each
    assert loader_workers(None, 4 * MIB) == 1


def test_a_system_without_shared_memory_of_its_own_sets_no_limit(monkeypatch):
    monkeypatch.setattr(loader, "SHARED_MEMORY", "/nowhere/shm")
    assert loader_workers(3, 2**50) == 3
