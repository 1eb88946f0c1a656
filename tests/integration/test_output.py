"""The lock of an output folder, against processes that hold it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from common.errors import BadInput
from engine.output import LOCK, locked

HOLD = ("import os, sys, time\nfrom engine.output import locked\n"
        "with locked(sys.argv[1]):\n"
        "    if not os.fork(): time.sleep(600)\n"  # as a loader of the run
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n")


@pytest.fixture
def holder(tmp_path):
    """A process with a child that holds the folder `run`; the child survives its end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_folder_is_for_one_process_until_it_ends_or_is_killed(tmp_path, holder):
    folder = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(BadInput, match="run is in use by another run: wait for its end, or name another"):
            with locked(folder):
                raise AssertionError("it is in use")
    assert os.listdir(folder) == [LOCK], "the holder's"
    holder.kill()
    holder.wait()
    with locked(folder):
        assert os.listdir(folder) == [LOCK]
    assert os.listdir(folder) == [], "the folder is the holder's"


def test_nothing_is_left_of_a_lock_but_what_was_there_and_what_was_written(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "last.pt").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["last.pt"]


def test_a_lock_that_its_holder_removes_this_moment_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", lambda file, how: os.unlink(file.name))
    with pytest.raises(BadInput, match="in use"), locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_a_note_says_so_and_the_work_is_done(tmp_path, monkeypatch, capsys, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path / "run"):
        pass
    message = f"note: {tmp_path}/run cannot be locked here ({os.strerror(number)}): start no second run there"
    assert message in capsys.readouterr().err
