"""The README's five minutes: its own commands, on 40 drawn photos, with the demo's weights for the hub's."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.shapes import write_dataset
from tests.helpers.documented import SCRIPTS, commands

ROOT = Path(__file__).resolve().parents[2]
INSTEAD_OF_THE_HUB = ["--arch", "test_vit", "--weights", ROOT / "weights" / "demo_vit.pt", "--epochs", 2]


@pytest.fixture
def photos(tmp_path):
    """`my_photos`, as the README lays them out: 28 to train on and 12 to validate on, by class names."""
    names = ["cross", "heart", "ring", "star"]
    drawn = write_dataset(tmp_path / "drawn", names, train_per_class=7, val_per_class=3)
    for part in ("train", "val"):
        (tmp_path / "my_photos" / part).mkdir(parents=True)
        for file in (drawn / part).iterdir():
            label, number = file.stem.split("_")
            shutil.copy(file, tmp_path / "my_photos" / part / f"{names[int(label)]}_{number}{file.suffix}")
    return tmp_path / "my_photos"


def test_your_photos_in_five_minutes(photos, monkeypatch):
    section = (ROOT / "README.md").read_text().split("## Your photos in five minutes")[1].split("\n## ")[0]
    found = commands(section)
    assert [script for script, *_ in found] == ["p1_train.py", "p1_eval.py", "p1_viz_attn.py",
                                                "p1_viz_posembed.py"]
    monkeypatch.chdir(photos.parent)
    Path("recipes").symlink_to(ROOT / "recipes")
    for script, *arguments in found:
        more = INSTEAD_OF_THE_HUB if script == "p1_train.py" else []
        assert SCRIPTS[script].main([*arguments, "--device", "cpu", *map(str, more)]) == 0
    with open("predictions.csv") as file:
        predictions = {row["filename"]: row["label"] for row in csv.DictReader(file)}
    assert predictions.keys() == {file.name for file in (photos / "val").iterdir()}
    right = sum(name.startswith(label) for name, label in predictions.items())
    assert right >= 9, "of 12: by chance 3"
    for name in ("ring_1.png", "star_2.png", "posembed.png"):
        assert Path("figures", name).is_file()


def test_sam_alone_runs_with_nothing_but_torch(tmp_path):
    section = (ROOT / "README.md").read_text().split("## SAM alone")[1]
    program = section.split("```python\n")[1].split("```")[0]
    assert len([line for line in program.splitlines() if line]) <= 14
    (tmp_path / "program.py").write_text(program)
    shutil.copy(ROOT / "sam.py", tmp_path)
    result = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True,
                            check=True)
    assert float(result.stdout.split("accuracy ")[1]) > 0.95
