import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from common import unfinished
from common.errors import BadInput
from common.unfinished import Unfinished
from datasets.images import LabelledFolder
from interpret import landscape, sharpness
from p1_viz_landscape import names_of, spread

SETTINGS = {"holdout": 0.5, "seed": 0}


def opened(path="a.pt", labels=("0", "1"), settings=SETTINGS, **fields):
    """A Checkpoint without a model."""
    fields = {"arch": "test_vit", "preprocessing": {"crop_pct": 0.9, "input_size": [3, 32, 32]}, **fields}
    return SimpleNamespace(path=path, labels=list(labels), settings=settings, **fields)


def folder(targets, labels=("0", "1")):
    names = [f"{i}.jpg" for i in range(len(targets))]
    return LabelledFolder("train", names, list(targets), list(labels), list(labels))


# Photos -----------------------------------------------------------------------------------------------------


def test_photos_come_evenly_from_the_classes():
    targets = [0] * 10 + [1] * 3 + [2] * 20
    for count, expected in ((3, [1, 1, 1]), (9, [3, 3, 3]), (13, [5, 3, 5]), (50, [10, 3, 20])):
        chosen = sharpness.evenly(targets, count, seed=0)
        assert np.bincount([targets[i] for i in chosen]).tolist() == expected
        assert len(set(chosen)) == len(chosen)
    one, again, other = (sharpness.evenly(targets, 9, seed) for seed in (0, 0, 1))
    assert one == again != other


def test_a_folder_with_one_photo_a_class_is_taken_whole():
    assert sharpness.trained_on([0, 1], {"holdout": 0.1, "seed": 0}) == {0, 1}


def test_only_photos_that_all_checkpoints_were_trained_on_are_taken(capsys):
    targets = [0] * 6 + [1] * 6
    settings = [{"holdout": 0.5, "seed": seed} for seed in range(2)]
    expected = sharpness.trained_on(targets, settings[0]) & sharpness.trained_on(targets, settings[1])
    assert 0 < len(expected) < 6
    checkpoints = [opened(settings=each) for each in settings]
    chosen = sharpness.choose_photos(folder(targets), checkpoints, 12, seed=0)
    assert {int(name.removesuffix(".jpg")) for name in chosen.names} == expected
    remark = f"note: train has {len(expected)} photos that all checkpoints were trained on: all are taken\n"
    assert capsys.readouterr().err == remark
    assert len(sharpness.choose_photos(folder(targets), checkpoints, 2, seed=0).names) == 2
    assert not capsys.readouterr().err


def test_checkpoints_without_a_common_photo_are_refused():
    targets = [0, 0, 1, 1]
    kept_by = {seed: sharpness.trained_on(targets, {"holdout": 0.5, "seed": seed}) for seed in range(20)}
    other = next(seed for seed, indices in kept_by.items() if not indices & kept_by[0])
    checkpoints = [opened(settings={"holdout": 0.5, "seed": seed}) for seed in (0, other)]
    with pytest.raises(BadInput, match="no photo that all checkpoints were trained on: name fewer"):
        sharpness.choose_photos(folder(targets), checkpoints, 2, 0)


@pytest.mark.parametrize("change, expected", [
    ({"arch": "test_vit4"}, "b.pt and a.pt differ in arch"), ({"labels": ["0", "2"]}, "differ in labels"),
    ({"preprocessing": {"crop_pct": 0.97, "input_size": [3, 32, 32]}},
     r"differ in preprocessing \(crop 0.97 against 0.9\): pass --one-preprocessing"),
    ({"preprocessing": {"crop_pct": 0.9, "input_size": [3, 64, 64]}},
     r"\(input size \[3, 64, 64\] against \[3, 32, 32\]\): compare ones of one size")])
def test_checkpoints_that_cannot_be_compared_are_refused(change, expected):
    checkpoints = [opened(), opened("b.pt", **change)]
    with pytest.raises(BadInput, match=expected):
        sharpness.refuse_unlike(checkpoints)
    if "--one-preprocessing" in expected:
        sharpness.refuse_unlike(checkpoints, one_preprocessing=True)
    else:
        with pytest.raises(BadInput, match=expected):
            sharpness.refuse_unlike(checkpoints, one_preprocessing=True)


def test_a_label_in_another_form_of_unicode_is_known():
    typed = folder([0, 0, 1, 1], ["Köter", "Mops"])
    labels = [unicodedata.normalize("NFD", label) for label in typed.labels]
    assert len(sharpness.choose_photos(typed, [opened(labels=labels)], 2, 0).names) == 2


def test_a_label_that_the_checkpoint_does_not_know_is_refused():
    with pytest.raises(BadInput, match="train holds the label 9, which a.pt does not know"):
        sharpness.choose_photos(folder([0, 0, 1, 1], ["0", "9"]), [opened()], 2, 0)


# Measures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints():
    """Two tiny models in float64."""
    torch.manual_seed(0)
    models = [VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=2,
                                mlp_ratio=1, num_classes=3).double().eval() for _ in range(2)]
    return [opened(f"{i}.pt", model=model) for i, model in enumerate(models)]


@pytest.fixture
def batches():
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    return [(images[:4], targets[:4]), (images[4:], targets[4:])]


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("POINTS", 3), ("GRID", 3), ("HESSIAN_BATCHES", 1)):
        monkeypatch.setattr(sharpness, name, value)


def test_what_is_measured_is_of_each_checkpoint_along_the_same_directions(quick, checkpoints, batches):
    rhos = [0.05, 0.1]
    arrays = sharpness.measure(checkpoints, ["a", "b"], batches, 0.3, rhos, seed=3, eigenvalues=2)
    axes = [arrays.pop(name).tolist() for name in ("alphas", "grid_alphas", "rhos")]
    assert axes == [[-0.3, 0, 0.3], [-0.3, 0, 0.3], rhos]
    assert {key: values.shape for key, values in arrays.items()} == {
        "loss": (2,), "loss_1d": (2, 3), "loss_2d": (2, 3, 3), "rise": (2, 2, 2), "rise_full": (2, 2),
        "eigenvalues": (2, 1, 2)}
    weights = [landscape.weights_of(checkpoint.model) for checkpoint in checkpoints]
    directions = landscape.random_directions(weights, 2, 3)
    for i, checkpoint in enumerate(checkpoints):
        loss = landscape.classification_loss(checkpoint.model)
        assert arrays["loss"][i] == landscape.mean_loss(loss, weights[i], batches)
        along = landscape.losses_along(loss, weights[i], batches, directions[0], axes[0])
        assert arrays["loss_1d"][i].tolist() == along.tolist() == arrays["loss_2d"][i, 1].tolist()
        for b, batch in enumerate(batches):
            rises = landscape.rises(loss, weights[i], [batch], rhos)
            assert arrays["rise"][i, b].tolist() == rises.tolist()
        full = landscape.rises(loss, weights[i], batches, rhos)
        assert arrays["rise_full"][i].tolist() == full.tolist()
        eigenvalues = landscape.largest_eigenvalues(loss, weights[i], batches[0], 2, 3)
        assert arrays["eigenvalues"][i, 0].tolist() == eigenvalues.tolist()


def test_an_interrupted_hessian_keeps_the_rest_which_a_call_without_eigenvalues_uses(
        quick, checkpoints, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0)
    measured = [checkpoints, ["a", "b"], batches, 0.3, [0.05], 3]
    expected = sharpness.measure(*measured, eigenvalues=0)
    assert expected.pop("eigenvalues").shape == (2, 1, 0)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(landscape, "largest_eigenvalues", interrupt)
        sharpness.measure(*measured, unfinished=Unfinished(tmp_path / "x"))
    for name in ("losses_over", "rises"):
        monkeypatch.setattr(landscape, name, None)  # nothing is measured again
    again = sharpness.measure(*measured, eigenvalues=0, unfinished=Unfinished(tmp_path / "x"))
    assert all(np.array_equal(again[key], values) for key, values in expected.items())


@pytest.mark.parametrize("span, rho, expected", [(1e307, 0.1, "--span leads to where"),
                                                 (0.3, np.inf, "--rho leads to where")])
def test_a_distance_where_the_loss_is_not_finite_is_refused(quick, checkpoints, batches, span, rho, expected):
    with pytest.raises(BadInput, match=expected):
        sharpness.measure(checkpoints, ["a", "b"], batches, span, [rho], 0)


def test_a_checkpoint_whose_outputs_are_not_finite_is_named(checkpoints, batches):
    with torch.no_grad():
        checkpoints[1].model.head.bias.fill_(torch.inf)
    with pytest.raises(BadInput, match="1.pt: its weights give outputs that are not finite"):
        sharpness.measure(checkpoints, ["a", "b"], batches, 0.3, [0.1], 0)


def test_each_measure_has_its_values():
    arrays = {"rhos": [0.1, 0.2], "loss": np.array([1.0, 2]), "loss_2d": np.array([[[1.0, 5]], [[2, 7]]]),
              "rise": np.arange(12.0).reshape(2, 3, 2), "rise_full": np.array([[1.0, 2], [3, 4]]),
              "eigenvalues": np.arange(8.0).reshape(2, 2, 2)}
    assert {name: values.tolist() for name, values in sharpness.measures(arrays).items()} == {
        "loss": [[1], [2]], "highest rise nearby": [[4], [5]],
        "rise at rho 0.1": [[0, 2, 4], [6, 8, 10]], "rise at rho 0.1, all photos": [[1], [3]],
        "rise at rho 0.2": [[1, 3, 5], [7, 9, 11]], "rise at rho 0.2, all photos": [[2], [4]],
        "eigenvalue 1": [[0, 2], [4, 6]], "eigenvalue 2": [[1, 3], [5, 7]]}


# SAM's verdict ----------------------------------------------------------------------------------------------

RUNS = [opened(settings={"sam": sam, "optimizer": "adam", "lr": 1e-4, "epochs": 4, "weights": "a.pt",
                         "scratch": False, "seed": 0}) for sam in (False, True)]
FLAT, SHARP, MIXED = np.array([1.0, 2, 3]), np.array([2.0, 3, 4]), np.array([0.9, 3, 4])


def compared(kinds, eigenvalues, rises, rhos=(0.01, 0.04)):
    """`compare_sam` of checkpoints with these eigenvalues and rises at the last rho for each batch."""
    rises = np.stack([np.full_like(rises, 5), rises], 2)
    return sharpness.compare_sam({
        "kinds": kinds, "rhos": rhos, "rise": rises, "rise_full": rises[:, 0], "loss": np.zeros(len(kinds)),
        "loss_2d": np.zeros((len(kinds), 1, 1)),
        "eigenvalues": np.reshape(eigenvalues, (*rises.shape[:2], -1))})


@pytest.mark.parametrize("sam, plain, verdicts, overall", [
    ([FLAT, FLAT], [SHARP, SHARP], ["flatter", "flatter"], "SAM was flatter here"),
    ([SHARP, SHARP], [FLAT, FLAT], ["sharper", "sharper"], "SAM was not flatter here"),
    ([FLAT, SHARP], [SHARP, FLAT], ["flatter", "sharper"], "the measures disagree"),
    ([FLAT, FLAT], [SHARP, MIXED], ["flatter", "unclear"], "no clear difference here"),
])
def test_the_verdict_takes_both_measures_in_every_batch(sam, plain, verdicts, overall):
    rows = compared(["adam", "SAM(adam)"], np.stack([plain[0], sam[0]]), np.stack([plain[1], sam[1]]))
    assert [row[0] for row in rows] == ["eigenvalue 1", "rise at rho 0.04"]
    for (_, *sides, verdict), expected in zip(rows, zip(sam, plain, verdicts)):
        assert [*map(list, sides), verdict] == [list(expected[0]), list(expected[1]), expected[2]]
    assert sharpness.overall(rows, RUNS) == overall
    assert sharpness.overall([(name, sam[:2], plain[:2], verdict) for name, sam, plain, verdict in rows],
                             RUNS).startswith("no verdict from 2 batches: 3 are needed")


@pytest.mark.parametrize("other, said", [
    ({"scratch": True, "lr": 1e-3, "weights": None},
     "also differ in lr 1e-04 / 1e-03, weights a.pt / none, scratch off / on"),
    ({"epochs": 8}, "also differ in epochs 4 / 8"), ({"optimizer": "sgd"}, "differ in optimizer adam / sgd"),
    ({"seed": 1, "rho": 0.1, "adaptive": True, "workers": 3, "sync_perturbation": True}, None)])
def test_only_runs_that_differ_in_sam_alone_get_a_verdict(other, said):
    rows = compared(["adam", "SAM(adam)", "SAM(adam)"], np.stack([SHARP, FLAT, FLAT]),
                    np.stack([SHARP, FLAT, FLAT]))
    runs = [*RUNS, opened(settings={**RUNS[1].settings, **other})]
    if said:
        assert sharpness.overall(rows, runs).startswith("no verdict on SAM: ")
        assert sharpness.overall(rows, runs).endswith(said)
    else:
        assert sharpness.overall(rows, runs) == "SAM was flatter here"


def test_without_eigenvalues_the_rise_alone_is_judged():
    (name, *_, verdict), = compared(["adam", "SAM(adam)"], np.empty((2, 3, 0)), np.stack([SHARP, FLAT]))
    assert (name, verdict) == ("rise at rho 0.04", "flatter")


def test_the_verdict_over_seeds_compares_means_and_wants_no_overlap():
    kinds = ["SAM(adam)", "ASAM(sgd)", "adam", "sgd"]
    apart = np.stack([FLAT, FLAT + 0.1, SHARP, SHARP + 0.5])
    overlapping = np.stack([FLAT, SHARP + 0.1, SHARP, SHARP + 0.5])
    (_, sam, plain, verdict), (*_, other) = compared(kinds, apart, overlapping)
    assert (verdict, other) == ("flatter", "overlap")
    assert sam.tolist() == pytest.approx([1.05, 2.05, 3.05])
    assert plain.tolist() == pytest.approx([2.25, 3.25, 4.25])
    assert [row[-1] for row in compared(kinds, apart[::-1], overlapping[::-1])] == ["sharper", "overlap"]
    assert sharpness.overall(compared(kinds, apart, overlapping), RUNS) == "no clear difference here"


def test_without_a_second_kind_there_is_no_verdict():
    for kinds in (["adam", "sgd"], ["SAM(adam)", "ASAM(adam)"]):
        assert compared(kinds, np.stack([FLAT, SHARP]), np.stack([FLAT, SHARP])) == []


def test_checkpoints_are_named_after_their_runs_or_else_their_files(tmp_path):
    assert names_of([tmp_path / "a" / "best.pt", tmp_path / "b" / "best.pt"]) == ["a", "b"]
    assert names_of([tmp_path / "a" / "best.pt", tmp_path / "a" / "last.pt"]) == ["best", "last"]
    twice = [tmp_path / "x" / "a" / "best.pt", tmp_path / "y" / "a" / "best.pt"]
    assert names_of(twice) == list(map(str, twice))


def test_a_spread_is_that_of_the_batches():
    assert spread(FLAT) == "2 (1 to 3)" and spread(FLAT[:1]) == "1"
