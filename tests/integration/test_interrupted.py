"""Long evaluations and figures that are killed, and the same call once more."""

import json
import os
import shutil

import numpy as np
import pytest

import p1_eval
import p1_viz_landscape
import p2_eval
from common import unfinished
from common.unfinished import Unfinished
from interpret import sharpness
from tests.helpers.training import Killed

CPU = ["--device", "cpu"]


@pytest.fixture
def calls(run, shapes, captioners, tmp_path):
    """By script: its main, the arguments without the output, and how many rows it finishes."""
    run = shutil.copytree(run, tmp_path / "run")  # p1_eval.py writes there, too
    return {"p1_eval": (p1_eval.main, [shapes / "val", "--checkpoint", run / "best.pt", "--batch-size", 3,
                                       "--workers", 0, "--json"], 6),
            "p2_eval": (p2_eval.main, ["--data", captioners / "coco", "--checkpoint",
                                       captioners / "captioner.pt", "--batch-size", 1, "--json"], 2),
            "p1_viz_landscape": (p1_viz_landscape.main, [
                run / "best.pt", "--data", shapes, "--images", 2, "--batch-size", 1,
                "--eigenvalues", 1, "--output"], 6)}


@pytest.mark.parametrize("script", ["p1_eval", "p2_eval", "p1_viz_landscape"])
def test_the_same_call_goes_on_and_comes_to_the_same(script, calls, tmp_path, monkeypatch, capsys):
    main, arguments, count = calls[script]
    name = "figure.png" if script == "p1_viz_landscape" else "result.json"

    def call(folder):
        return main([*map(str, arguments), str(tmp_path / folder / name), *CPU])

    monkeypatch.setattr(unfinished, "EVERY", 0)
    for constant, small in (("POINTS", 3), ("GRID", 3), ("HESSIAN_BATCHES", 1)):
        monkeypatch.setattr(sharpness, constant, small)
    add, rows = Unfinished.append, []

    def dying(self, row):
        add(self, row)
        rows.append(row)
        if len(rows) in (count + 1, 2 * count - 1):  # after the first row of the second call; before the last
            raise Killed

    monkeypatch.setattr(Unfinished, "append", dying)
    assert call("alone") == 0 and len(rows) == count
    for _ in range(2 if count > 2 else 1):
        with pytest.raises(Killed):
            call("killed")
    left = os.listdir(tmp_path / "killed")
    assert len(left) == 1 and left[0].endswith(".unfinished")
    assert call("killed") == 0 and len(rows) == 2 * count, "no row is computed twice"
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "alone"))
    if name == "result.json":
        one, other = (json.loads((tmp_path / folder / name).read_text()) for folder in ("alone", "killed"))
        assert one == other
    else:
        one, other = (np.load(tmp_path / folder / "figure.npz") for folder in ("alone", "killed"))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert "goes on where the same call was interrupted" in capsys.readouterr().err
