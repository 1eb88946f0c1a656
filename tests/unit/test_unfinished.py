"""What an interrupted call leaves for its repetition."""

import os

import pytest
import torch

from common import unfinished
from common.files import written_whole
from common.unfinished import Unfinished, identity_of


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0)


def test_the_same_call_finds_the_rows_and_another_does_not(tmp_path, capsys):
    output = tmp_path / "result.json"
    rows = [({"loss": torch.arange(3.0)}, ["a"], 0.1), (torch.ones(2)[1:],)]
    for number, row in enumerate(rows):
        one = Unfinished(output, "call", 1)
        assert len(one.rows) == number
        one.append(row)
    again = Unfinished(output, "call", 1)
    assert str(again.rows) == str(rows)
    assert "goes on where the same call was interrupted" in capsys.readouterr().err
    assert Unfinished(output, "call", 2).rows == []
    again.path.write_bytes(again.path.read_bytes()[:-9])
    assert Unfinished(output, "call", 1).rows == []
    again.remove()
    assert os.listdir(tmp_path) == []
    Unfinished(None, "call").append(1)
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_is_another_input(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    before = identity_of([path, tmp_path / "missing"])
    os.utime(path, ns=(1, 1))
    assert identity_of([path]) != before == [(str(path), 3, before[0][2])]


def test_rows_are_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 1000)
    one = Unfinished(tmp_path / "x", 1)
    one.append(1)
    assert not one.path.exists()
    one.saved -= 1001
    one.append(2)
    assert Unfinished(tmp_path / "x", 1).rows == [1, 2]


def test_what_a_killed_writer_left_goes_at_the_next_call_and_a_living_one_keeps_its_own(tmp_path):
    path = tmp_path / "a.npz"
    (tmp_path / ".a.npz-abcdefgh.npz").write_bytes(b"half")
    with written_whole(path) as one:
        assert os.listdir(tmp_path) == [one.name]
        one.write_bytes(b"one")
        with written_whole(path) as other:
            assert one.exists()
            other.write_bytes(b"other")
    assert os.listdir(tmp_path) == ["a.npz"] and path.read_bytes() == b"one"
