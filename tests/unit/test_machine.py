"""What a process may count on where it runs."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

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


def test_what_one_rank_says_for_all_is_said_again_after_a_restart(monkeypatch):
    """torchrun's store counts on from attempt to attempt; over several machines the counts may differ."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    for variable in ("RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={store.port}"):
        monkeypatch.setenv(*variable.split("="))
    for restart in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        assert [machine.is_first_rank_to("save") for _ in range(2)] == [True, False]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert machine.attempt() == 0


def test_windows_is_sent_to_wsl_before_anything_else_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(machine.__file__)
    assert "WSL" in capsys.readouterr().err
    for script in Path(machine.__file__).parents[1].glob("p[12]_*.py"):
        ours = re.search(r"^from (\w+\.\w+)", script.read_text(), re.MULTILINE)
        assert ours[1] == "common.cli", f"{script} must import it first"
