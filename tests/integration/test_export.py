"""p1_export.py, and what its folder is good for."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

import p1_eval
import p1_export
import p1_viz_attn
from models.checkpoint import open_checkpoint
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.training import train


@pytest.fixture(scope="module")
def trained(run, shapes, tmp_path_factory):
    """A run folder, evaluated."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("evaluated") / "run")
    best = str(folder / "best.pt")
    assert p1_eval.main([str(shapes / "val"), "--checkpoint", best, "--device", "cpu"]) == 0
    return folder


def export(checkpoint, output):
    return p1_export.main(["--checkpoint", str(checkpoint), "--output-dir", str(output)])


def test_timm_alone_loads_what_the_card_says(trained, shapes, tmp_path):
    assert export(trained / "best.pt", tmp_path / "shapes") == 0
    card = (tmp_path / "shapes" / "README.md").read_text()
    result = json.loads((trained / "eval.json").read_text())
    low, high = result["ci95"]
    assert f"Accuracy **{result['accuracy']:.4f}** on 16 images that it has not seen (95 % interval " \
           f"{low:.3f} to {high:.3f})." in card
    assert "test_vit, from scratch, SAM(adam): it tells 4 classes apart, in images of 160x160 pixels." in card
    assert "| rho | 0.05 |" in card and "mixup" not in card and str(shapes) not in card
    assert len(re.findall(r"^- \w+ and \w+: [0-9]+ of 8 images$", card, re.MULTILINE)) > 0

    shutil.copy(shapes / "val" / "0_0.jpg", tmp_path / "photo.jpg")
    code, = re.findall("```python\n(.*?)```", card, re.DOTALL)
    code += "torch.save(model(torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)), 'logits.pt')"
    printed = subprocess.check_output([sys.executable, "-I", "-c", code], cwd=tmp_path, text=True)
    assert re.fullmatch(r"((cross|heart|ring|star) 0\.\d\d\n){4}", printed)
    with torch.no_grad():
        expected = open_checkpoint(trained / "best.pt").model(
            torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_our_scripts_take_the_folder(trained, shapes, tmp_path, capsys):
    folder = tmp_path / "shapes"
    assert export(trained / "best.pt", folder) == 0
    capsys.readouterr()
    photos, flags = str(shapes / "val"), ["--checkpoint", str(folder), "--device", "cpu"]
    assert p1_eval.main([photos, str(tmp_path / "pred.csv"), *flags, "--json", str(tmp_path / "r.json")]) == 0
    assert (tmp_path / "pred.csv").read_text() == (trained / "pred.csv").read_text()
    assert len(json.loads((tmp_path / "r.json").read_text())["checkpoint_sha256"]) == 64
    assert p1_viz_attn.main([f"{photos}/0_0.jpg", "--output-dir", str(tmp_path), *flags]) == 0
    assert train(shapes, tmp_path / "run", "--epochs", 1, start=["--weights", folder]) == 0
    assert "replaced" not in capsys.readouterr().err, "its head fits"


def test_what_it_refuses_and_what_it_cannot_say(run, trained, tmp_path, capsys):
    output, said = tmp_path / "out", "the card states no accuracy: "
    assert export(run / "best.pt", output) == 0
    assert f"{said}{run} was not evaluated: python p1_eval.py" in capsys.readouterr().err
    assert "It was not evaluated." in (tmp_path / "out" / "README.md").read_text()
    assert export(run / "best.pt", output) == 2
    assert f"--output-dir {output} exists and is not an empty folder" in capsys.readouterr().err
    assert export(trained / "last.pt", tmp_path / "last") == 0
    assert f"{said}it is not the best.pt of a run" in capsys.readouterr().err
    assert export(write_checkpoint(tmp_path / "made-up.pt"), tmp_path / "none") == 2
    assert "made-up.pt does not say how it was trained: it is damaged" in capsys.readouterr().err
