import pytest

from compare.claims import HEADER, NOT_SUPPORTED, OPEN, SUPPORTED, claims
from tests.helpers.run_folders import right_of, study, write_run

IN_EPOCHS = "SAM converges faster, counted in epochs"
IN_PASSES = "SAM converges faster, counted in forward-backward passes"
ONE_RUN = "one run each: another seed may change it"


def claims_of(folder):
    """The claims about all runs in a folder, by statement."""
    read = study(folder)
    rows = claims(read.settings, read.comparisons)
    assert all(len(row) == len(HEADER) for row in rows)
    return {row.statement: row for row in rows}


def write_sam(folder, *, plain, sam, plain_train=0.95, sam_train=0.95, sam_curve=(0.4, 0.6, 0.8, 0.8)):
    """The claims about a run without and one with SAM, which get the first so many of 200 images wrong."""
    for name, wrong, last, curve in (("adam", plain, plain_train, (0.4, 0.6, 0.8, 0.8)),
                                     ("sam", sam, sam_train, sam_curve)):
        write_run(folder / name, right_of(range(wrong), total=200), recipe=f"{name}.toml", sam=name == "sam",
                  curve=curve, train=(*curve[:-1], last))
    return claims_of(folder)


def test_sam_is_better(tmp_path):
    rows = write_sam(tmp_path, plain=40, sam=10, sam_train=0.97, sam_curve=(0.8, 0.8, 0.8, 0.8))
    epochs, passes, overfits = rows[IN_EPOCHS], rows[IN_PASSES], rows["SAM overfits less"]
    assert epochs.verdict == passes.verdict == overfits.verdict == SUPPORTED
    assert (epochs.first, epochs.first_value, epochs.second, epochs.second_value) == (
        "sam", "epoch 1", "adam", "epoch 3")
    assert "to held-out accuracy 0.760, 95 % of the lower of 0.800 and 0.800" in epochs.note
    assert ONE_RUN in epochs.note
    assert (passes.first_value, passes.second_value) == ("20 passes", "30 passes")
    # gaps 0.97 - 0.95 and 0.95 - 0.8; margin 1.96 sqrt(31 - 900 / 202) / 202
    assert (overfits.first_value, overfits.second_value) == ("+2.0 points", "+15.0 points")
    assert overfits.margin == "-13.0 ± 5.0 points"
    assert "at equal epochs; accuracy on val +15.0 points: exceeds the noise" in overfits.note
    assert "differ in" not in overfits.note, "in SAM alone"
    assert ONE_RUN in overfits.note


def test_sam_is_not_better(tmp_path):
    rows = write_sam(tmp_path, plain=10, sam=40, sam_curve=(0.2, 0.4, 0.6, 0.8))
    assert {rows[name].verdict for name in (IN_EPOCHS, IN_PASSES, "SAM overfits less")} == {NOT_SUPPORTED}
    assert (rows[IN_EPOCHS].first_value, rows[IN_EPOCHS].second_value) == ("epoch 4", "epoch 3")
    assert "accuracy on val -15.0 points: exceeds the noise" in rows["SAM overfits less"].note


def test_fewer_epochs_may_be_more_passes(tmp_path):
    rows = write_sam(tmp_path, plain=10, sam=10, sam_curve=(0.4, 0.8, 0.8, 0.8))
    assert rows[IN_EPOCHS].verdict == SUPPORTED
    assert rows[IN_PASSES].verdict == NOT_SUPPORTED, "40 against 30"


def test_rates_and_epochs_that_make_two_comparable_are_no_other_cause(tmp_path):
    """Rates that the held-out part chose, and epochs for equal passes, are noted as that."""
    write_run(tmp_path / "sam", right_of(range(10), total=200), sam=True, lr=1e-4)
    write_run(tmp_path / "low", right_of(range(40), total=200), lr=2e-4, curve=(0.1, 0.2, 0.3, 0.4))
    write_run(tmp_path / "adam", right_of(range(40), total=200), lr=3e-4)
    write_run(tmp_path / "long", right_of(range(40), total=200), lr=1e-4, train=(0.5,) * 8, curve=(0.5,) * 8)
    read = study(tmp_path)
    notes = [row.note for row in claims(read.settings, read.comparisons)
             if row.statement == "SAM overfits less"]
    assert not any("no single one" in note for note in notes)
    chosen, = (note for note in notes if "equal epochs" in note)
    assert "; lr 1e-04 / 3e-04, each with the highest held-out accuracy" in chosen
    passes, = (note for note in notes if "equal passes" in note)
    assert "; epochs 4 / 8, for equal passes" in passes


def test_gaps_within_the_noise_do_not_say(tmp_path):
    row = write_sam(tmp_path, plain=13, sam=10)["SAM overfits less"]
    assert row.verdict == OPEN and row.margin.startswith("-1.5 ± ")
    assert "within the noise of 200 images: needs more images" in row.note


def test_without_training_accuracies_gaps_do_not_say(tmp_path):
    row = write_sam(tmp_path, plain=40, sam=10, sam_train=None)["SAM overfits less"]
    assert row.verdict == OPEN and "no training accuracy was measured" in row.note
    assert "noise of" not in row.note


def test_seeds_whose_ranges_overlap_do_not_say(tmp_path):
    for seed, last in enumerate((0.8, 0.9)):
        same = {"seed": seed, "train": (0.4, 0.8, 0.8, last)}
        write_run(tmp_path / f"a{seed}", right_of(range(5 * seed)), sam=True,
                  curve=(0.1, 0.2 + seed / 2, 0.8, 0.8), **same)
        write_run(tmp_path / f"b{seed}", right_of(range(5 * seed)), curve=(0.1, 0.2, 0.4 + seed / 2, 0.8),
                  **same)
    rows = claims_of(tmp_path)
    gap, epochs = rows["SAM overfits less"], rows[IN_EPOCHS]
    for row in (gap, epochs):
        assert row.verdict == OPEN and "ranges over seeds overlap: needs more seeds" in row.note
        assert ONE_RUN not in row.note
    assert (epochs.first_value, epochs.second_value) == ("epoch 3", "epoch 3.5 (3 to 4)")
    # 0.8 - 1 and 0.9 - 55 / 60
    assert gap.first_value == gap.second_value == "-10.8 points (-20.0 to -1.7)"


def test_runs_of_one_setting_do_not_say_what_it_takes_two_for(tmp_path):
    write_run(tmp_path / "run0", right_of(0))
    rows = claims_of(tmp_path)
    assert len(rows) == 5 and {row.verdict for row in rows.values()} == {OPEN}
    assert {(row.first, row.second_value, row.margin) for row in rows.values()} == {("", "", "")}
    assert "--scratch" in rows["pretraining converges faster"].note
    assert all("--sam" in rows[name].note for name in (IN_EPOCHS, IN_PASSES, "SAM overfits less"))
    assert "--arch" in rows["size matters little here"].note


def test_what_the_runs_support_comes_first(tmp_path):
    rows = write_sam(tmp_path, plain=13, sam=10, sam_curve=(0.4, 0.8, 0.8, 0.8))
    assert [row.verdict for row in rows.values()] == [SUPPORTED, NOT_SUPPORTED, OPEN, OPEN, OPEN]


@pytest.mark.parametrize("pretrained, scratch, verdict, values, note", [
    ((0.5, 0.7, 0.8, 0.8), (0.1, 0.2, 0.3, 0.4), SUPPORTED, ("epoch 1", "epoch 4"),
     "to held-out accuracy 0.380"),
    # the run from scratch learns nothing, and reaches that at once
    ((0.5, 0.7, 0.8, 0.8), (0.03, 0.03, 0.03, 0.03), SUPPORTED, ("epoch 1", "epoch 1"),
     "first at 0.500 after one epoch, second never above 0.030"),
    ((0.1, 0.2, 0.3, 0.8), (0.6, 0.7, 0.8, 0.8), NOT_SUPPORTED, ("epoch 4", "epoch 3"), ""),
    ((0.8, 0.8, 0.8, 0.8), (0.8, 0.8, 0.8, 0.8), NOT_SUPPORTED, ("epoch 1", "epoch 1"), ""),
])
def test_pretraining_converges_faster(tmp_path, pretrained, scratch, verdict, values, note):
    write_run(tmp_path / "a", right_of(0), recipe="tiny.toml", curve=pretrained, lr=1e-4)
    write_run(tmp_path / "b", right_of(0), recipe="scratch.toml", curve=scratch, lr=1e-3, scratch=True,
              weights=None)
    write_run(tmp_path / "c", right_of(0), recipe="sam.toml", curve=(1, 1, 1, 1), sam=True)
    row = claims_of(tmp_path)["pretraining converges faster"]
    assert (row.verdict, row.first, row.second) == (verdict, "tiny", "scratch")
    assert (row.first_value, row.second_value) == values and note in row.note
    assert ("; differ in weights tiny.safetensors / none, scratch off / on, lr 1e-04 / 1e-03: no single one "
            "can be named as the cause; ") in row.note


def test_what_a_seed_never_reaches_has_no_mean(tmp_path):
    # 0.95 of the lower mean of the final accuracies, 0.5, is 0.475
    write_run(tmp_path / "a", right_of(0), recipe="tiny.toml", curve=(0.4, 0.5, 0.8, 0.8))
    for seed, curve in enumerate([(0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.6, 0.6)]):
        write_run(tmp_path / f"b{seed}", right_of(0), recipe="scratch.toml", scratch=True, weights=None,
                  seed=seed,
                  curve=curve)
    assert claims_of(tmp_path)["pretraining converges faster"].second_value == "epoch 3 to never"


@pytest.mark.parametrize("large, small, total, verdict, margin, note", [
    (range(10), range(110), 400, NOT_SUPPORTED, "+25.0 ± 4.3 points", "is little; exceeds the noise"),
    (range(10), range(12), 2000, SUPPORTED, "+0.1 ± 0.2 points", "less than 3 points is little"),
    # b = 3, c = 1 of 100: 100 (margin / (3 - 2))^2 with margin = 1.96 sqrt(5 - 4 / 102) / 102 = 4.28
    (range(1), range(1, 4), 100, OPEN, "+2.0 ± 4.3 points", "needs about 1,800 images"),
    (range(1), range(5), 100, OPEN, "+4.0 ± 4.2 points", "needs more images, or more seeds"),
])
def test_size_matters_little(tmp_path, large, small, total, verdict, margin, note):
    write_run(tmp_path / "a", right_of(small, total=total), recipe="tiny.toml")
    write_run(tmp_path / "b", right_of(large, total=total), recipe="small.toml", arch="vit_small_patch16_224",
              weights="small.safetensors", parameters=22_000_000)
    row = claims_of(tmp_path)["size matters little here"]
    assert (row.verdict, row.margin) == (verdict, margin) and note in row.note and ONE_RUN in row.note
    accuracies = [1 - len(wrong) / total for wrong in (large, small)]
    assert row.first_value == f"{accuracies[0]:.3f} with 22.0 M parameters"
    assert row.second_value == f"{accuracies[1]:.3f} with 5.5 M parameters"
