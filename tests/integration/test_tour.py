"""The notebook, run from its first cell to its last."""

import os
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FEWER = {"EPOCHS = 15": "EPOCHS = 1", "%pip install -q '.[captions,report]'": ""}


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "tour.ipynb", nbformat.NO_CONVERT)


def test_it_has_no_output_in_git(notebook):
    assert all(not cell.outputs and cell.execution_count is None
               for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    folder = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(
        ".*", "data", "runs", "tests", "docs"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    first = notebook.cells[1]
    for line, other in FEWER.items():
        assert line in first.source
        first.source = first.source.replace(line, other)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert len(pictures) == 5 and "accuracy 0." in printed and "error" not in printed
    assert any("<iframe srcdoc=" in output.get("data", {}).get("text/html", "")
               for output in notebook.cells[-1].outputs)
