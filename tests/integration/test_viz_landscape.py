"""p1_viz_landscape.py on checkpoints of p1_train.py."""

import numpy as np
import pytest
import torch

import p1_viz_landscape
from datasets import decode, images, transforms
from interpret import landscape, sharpness
from models.checkpoint import open_checkpoint

QUICK = ["--device", "cpu", "--images", "10", "--batch-size", "5", "--rho", "0.05", "0.1",
         "--eigenvalues", "1"]


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    for name, value in (("POINTS", 3), ("GRID", 3), ("HESSIAN_BATCHES", 1)):
        monkeypatch.setattr(sharpness, name, value)


def draw(*arguments):
    return p1_viz_landscape.main([*map(str, arguments), *QUICK])


def test_the_script_writes_the_figure_and_its_arrays(run, shapes, tmp_path, capsys):
    saved = torch.load(run / "best.pt", weights_only=True)
    settings = {**saved["settings"], "sam": False}
    weights = {name: value * 1.1 for name, value in saved["state_dict"].items()}
    (tmp_path / "plain").mkdir()
    torch.save({**saved, "settings": settings, "state_dict": weights}, tmp_path / "plain" / "best.pt")

    checkpoints, output = [run / "best.pt", tmp_path / "plain" / "best.pt"], tmp_path / "new" / "figure.png"
    assert draw(*checkpoints, "--data", shapes, "--output", output) == 0
    lines = capsys.readouterr().out.splitlines()
    ranked, (header, *compared) = lines[1:lines.index("")], lines[lines.index("") + 1:-2]
    assert [line.split()[1:3] for line in ranked if line.startswith("loss ")] in (
        [["output", "SAM(adam)"], ["plain", "adam"]], [["plain", "adam"], ["output", "SAM(adam)"]])
    assert len(ranked) == 2 * 7 and header.split() == "measure with SAM without lower in verdict".split()
    assert [line[:20].strip() for line in compared] == ["eigenvalue 1", "rise at rho 0.05"]
    assert lines[-2].startswith("no verdict from 1 batch: ")
    assert str(output) in lines[-1] and output.stat().st_size > 5000

    with np.load(output.with_suffix(".npz")) as file:
        arrays = dict(file)
    assert {key: values.shape for key, values in arrays.items()} == {
        "names": (2,), "kinds": (2,), "loss": (2,), "alphas": (3,), "loss_1d": (2, 3), "grid_alphas": (3,),
        "loss_2d": (2, 3, 3), "rhos": (2,), "rise": (2, 2, 2), "rise_full": (2, 2), "eigenvalues": (2, 1, 1),
        "images": (10,)}
    assert arrays["names"].tolist() == ["output", "plain"]
    assert arrays["kinds"].tolist() == ["SAM(adam)", "adam"]
    assert arrays["alphas"].tolist() == arrays["grid_alphas"].tolist() == [-0.3, 0, 0.3]
    np.testing.assert_array_equal(arrays["loss_1d"][:, 1], arrays["loss"])
    assert (arrays["rise"][:, :, 1] > arrays["rise"][:, :, 0]).all()
    for i, checkpoint in enumerate(checkpoints):
        compare_to_photos(checkpoint, shapes, {key: arrays[key][i] for key in ("loss", "rise", "rise_full")},
                          arrays["images"].tolist())


def compare_to_photos(checkpoint, shapes, arrays, names):
    """The losses are those of the photos named, none of which was held out."""
    opened = open_checkpoint(checkpoint)
    transform = transforms.evaluation_transform(opened.preprocessing)
    inputs = torch.stack([transform(decode.load_image(shapes / "train" / name)) for name in names])
    targets = torch.tensor([opened.labels.index(name.split("_")[0]) for name in names])
    with torch.no_grad():
        log_probs = opened.model(inputs).log_softmax(1)
    assert arrays["loss"] == pytest.approx(-log_probs[range(10), targets].mean().item(), rel=1e-5)
    loss, weights = landscape.classification_loss(opened.model), landscape.weights_of(opened.model)
    batches = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    for values, part in zip([*arrays["rise"], arrays["rise_full"]], ([batches[0]], [batches[1]], batches)):
        np.testing.assert_allclose(values, landscape.rises(loss, weights, part, [0.05, 0.1]), rtol=1e-3)
    assert len({name.split("_")[0] for name in names[:4]}) == 4, "a batch begins with one of each class"
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    held_out = {folder.names[i] for i in images.stratified_holdout(folder.targets, 0.1, 0)[1]}
    assert held_out and not held_out & set(names)


@pytest.mark.parametrize("case, expected", [
    ("arch", "differ in arch"), ("huge", "not finite: it is damaged"), ("cut", "1 file of"),
    ("span", "--span leads"), ("folder", "figure.png is a folder"), ("missing", "train does not exist")])
def test_bad_input_leaves_nothing_behind(run, shapes, tmp_path, capsys, case, expected):
    checkpoints, flags = [run / "best.pt"], []
    data, output = tmp_path / "data", tmp_path / "out" / "figure.png"
    (data / "train").mkdir(parents=True)
    for name in (f"{label}_{i}.jpg" for label in range(4) for i in range(2)):
        (data / "train" / name).write_bytes((shapes / "train" / name).read_bytes())
    saved = torch.load(run / "best.pt", weights_only=True)
    if case == "arch":
        from models.vit import build
        checkpoints.append(tmp_path / "other.pt")
        weights = build("test_vit4", 4).state_dict()
        torch.save({**saved, "arch": "test_vit4", "state_dict": weights}, checkpoints[1])
    if case == "huge":
        checkpoints = [tmp_path / "huge.pt"]
        weights = {key: value * 1e30 for key, value in saved["state_dict"].items()}
        torch.save({**saved, "state_dict": weights}, checkpoints[0])
    if case == "cut":
        (data / "train" / "0_0.jpg").write_bytes((shapes / "train" / "0_0.jpg").read_bytes()[:600])
        (data / "train" / "0_1.jpg").unlink()
    if case == "span":
        flags = ["--span", "1e38"]
    if case == "folder":
        output.mkdir(parents=True)
    if case == "missing":
        data = tmp_path / "missing"
    assert draw(*checkpoints, "--data", data, "--output", output, *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert case == "folder" or not list(tmp_path.glob("out/*"))
