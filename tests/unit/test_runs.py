import json
import shlex

import numpy as np
import pytest

from common.errors import BadInput
from common.files import sha256
from compare.runs import Study, reliability_curves, settings_curves
from tests.helpers.run_folders import right_of, study, write_run


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


# Grouping


def test_seeds_are_grouped_and_settings_named(tmp_path):
    write_run(tmp_path / "a0", right_of(0), seed=0, recipe="recipes/tiny-4.toml", workers=1, device="cpu")
    write_run(tmp_path / "a1", right_of(1), seed=1, recipe="elsewhere/tiny-4.toml", workers=2, resume=True)
    write_run(tmp_path / "b0", right_of(2), recipe="tiny-4.toml", lr=3e-4, train=(0.5,) * 14,
              curve=(0.5,) * 14)
    write_run(tmp_path / "c0", right_of(3), sam=True, recipe="tiny-5.toml")
    write_run(tmp_path / "d0", right_of(3), scratch=True, weights=None, sam=True, adaptive=True, ema=None)
    write_run(tmp_path / "e0", right_of(3), scratch=True, weights=None, sam=True, adaptive=True, ema=0.99)
    read = study(tmp_path)
    assert not read.left_out
    assert [(setting.name, len(setting.runs)) for setting in read.settings] == [
        ("a", 2), ("b0", 1), ("tiny-5", 1), ("d0", 1), ("e0", 1)]


def test_letters_name_settings_that_neither_recipes_nor_folders_tell_apart(tmp_path):
    for name, settings in (("adam", {}), ("sam", {"sam": True}), ("asam", {"sam": True, "adaptive": True})):
        for seed in range(2):
            write_run(tmp_path / name / f"seed{seed}", right_of(seed), seed=seed, **settings)
    settings = Study(sorted(tmp_path.glob("*a*m/seed*"))).settings
    assert [(setting.name, setting.slug, setting.runs[0].folder.parent.name) for setting in settings] == [
        ("A", "A", "adam"), ("B", "B", "asam"), ("C", "C", "sam")]


def test_a_flag_that_an_older_version_did_not_have_counts_as_not_given(tmp_path):
    write_run(tmp_path / "a", right_of(), seed=0, sync_perturbation=...)
    write_run(tmp_path / "b", right_of(), seed=1, head_init=None)
    write_run(tmp_path / "c", right_of(), seed=2, head_init="probe")
    assert [len(setting.runs) for setting in study(tmp_path).settings] == [2, 1]


def test_flags_of_older_versions_are_read_under_their_names_of_today(tmp_path):
    older = {"sync_perturbation": ..., "cache": 0}
    write_run(tmp_path / "a", right_of(), seed=0, sam=True)
    write_run(tmp_path / "b", right_of(), seed=1, sam=True, climb="process", **older)
    write_run(tmp_path / "c", right_of(), seed=2, sam=True, sync_perturbation=True)
    write_run(tmp_path / "d", right_of(), seed=3, sam=True, climb="joint", **older)
    settings = study(tmp_path).settings
    assert [[run.folder.name for run in setting.runs] for setting in settings] == [["a", "b"], ["c", "d"]]


def test_a_value_that_no_flag_stands_for_any_more_is_another_setting(tmp_path):
    write_run(tmp_path / "a", right_of(), seed=0, sam=True)
    write_run(tmp_path / "b", right_of(), seed=1, sam=True, sync_perturbation=..., climb="micro-batch")
    assert len(study(tmp_path).settings) == 2


def test_two_runs_of_one_seed_are_refused(tmp_path):
    write_run(tmp_path / "one", right_of(0))
    write_run(tmp_path / "two", right_of(1))
    with pytest.raises(BadInput, match="one and .*two are runs of one setting with the same seed, 0"):
        study(tmp_path)


def test_seeds_of_one_setting_on_different_images_are_refused(tmp_path):
    write_run(tmp_path / "one", right_of(0))
    write_run(tmp_path / "two", right_of(1, total=30), seed=1)
    with pytest.raises(BadInput, match="one and .*two are .* evaluated on different images"):
        study(tmp_path)


def test_the_same_images_in_another_folder_are_the_same_images(tmp_path):
    write_run(tmp_path / "one", right_of(0), images=tmp_path / "here")
    write_run(tmp_path / "two", right_of(1), images=tmp_path / "there", lr=1.0)
    assert len(study(tmp_path).comparisons) == 1


# Left out


def test_runs_that_cannot_be_used_are_left_out_with_what_to_do(tmp_path):
    write_run(tmp_path / "run0", right_of(0))
    unfinished = write_run(tmp_path / "run1", right_of(0), lr=1.0, processes=2)
    edit_config(unfinished, lambda config: config.update(command=config["command"] + " --resume"))
    lines = (unfinished / "metrics.csv").read_text().splitlines(keepends=True)
    (unfinished / "metrics.csv").write_text("".join(lines[:-1]))
    (write_run(tmp_path / "run 2", right_of(0), lr=2.0) / "eval.json").unlink()
    (write_run(tmp_path / "run3", right_of(0), lr=3.0, data="demo") / "best.pt").write_text("trained further")
    (write_run(tmp_path / "run4", right_of(0), lr=4.0) / "eval.npz").write_text("x")
    write_run(tmp_path / "run5", right_of(0), lr=5.0, targets=[-1] * 60)
    other = write_run(tmp_path / "run6", right_of(0), lr=6.0)
    another = write_run(tmp_path / "photos" / "run6", right_of(0, 1))
    (other / "eval.npz").write_bytes((another / "eval.npz").read_bytes())
    (write_run(tmp_path / "run7", right_of(0), lr=7.0) / "metrics.csv").unlink()
    read = study(tmp_path)
    assert [run.folder.name for run in read.runs] == ["run0"]
    evaluate = "python p1_eval.py p1_data/val --checkpoint"
    for line, (name, reason) in zip(read.left_out, [
            ("run 2", f"was not evaluated: {evaluate} {shlex.quote(str(tmp_path / 'run 2' / 'best.pt'))}"),
            ("run1", "is not finished (3 of 4 epochs, held out 0.800): torchrun --nproc-per-node 2 "
                     f"p1_train.py --data p1_data --output {unfinished} --resume"),
            ("run3", "was evaluated with an older best.pt: python p1_eval.py data/demo/val --checkpoint"),
            ("run4", f"has a damaged evaluation: {evaluate}"),
            ("run5", "was evaluated on images without labels: python p1_eval.py"),
            ("run6", "has an eval.json and an eval.npz of different evaluations: python p1_eval.py"),
            ("run7", "is not finished (0 of 4 epochs): python p1_train.py")], strict=True):
        assert line.startswith(f"{tmp_path / name} {reason}") and line.count("--resume") < 2


def test_a_copy_of_a_run_without_weights(tmp_path):
    run = write_run(tmp_path / "run0", right_of(0))
    digest = sha256(run / "best.pt")
    (run / "best.pt").unlink()
    assert [run.checkpoint_sha256 for run in study(tmp_path).runs] == [digest]


def test_an_evaluation_with_flipped_images_is_asked_for_again(tmp_path):
    write_run(tmp_path / "run0", right_of(0))
    write_run(tmp_path / "run1", right_of(0), lr=1.0, scores={"flip": True})
    line, = study(tmp_path).left_out
    assert line.startswith(f"{tmp_path / 'run1'} was evaluated with --flip")
    assert line.endswith(f": python p1_eval.py p1_data/val --checkpoint {tmp_path / 'run1' / 'best.pt'}")


def test_an_evaluation_of_an_older_version_without_flipped_images_is_used(tmp_path):
    write_run(tmp_path / "run0", right_of(0), scores={"flip": False})
    write_run(tmp_path / "run1", right_of(1), seed=1)
    read = study(tmp_path)
    assert not read.left_out and len(read.settings[0].runs) == 2


def test_if_no_run_is_left_that_is_bad_input(tmp_path):
    (write_run(tmp_path / "run0", right_of(0)) / "eval.npz").unlink()
    with pytest.raises(BadInput, match="none of the runs can be used") as error:
        study(tmp_path)
    line, = error.value.details
    assert line.startswith(f"{tmp_path / 'run0'} was not evaluated: python p1_eval.py")


@pytest.mark.parametrize("content, problem", [
    (None, "run1 is not a run folder"), ("{", "config.json is damaged"), ("[]", "config.json is damaged"),
    ('{"settings": {"epochs": "x"}}', "config.json is damaged"),
    ('{"settings": {"epochs": 3}}', "run1 is no run of p1_train.py")])
def test_a_folder_that_is_no_run_is_bad_input(tmp_path, content, problem):
    write_run(tmp_path / "run0", right_of(0))
    (tmp_path / "run1").mkdir()
    if content:
        (tmp_path / "run1" / "config.json").write_text(content)
    with pytest.raises(BadInput, match=problem):
        study(tmp_path)


@pytest.mark.parametrize("edit, problem", [
    (lambda text: text.replace("train_loss", "loss"), "metrics.csv is damaged"),
    (lambda text: text.replace("0.3", "x"), "metrics.csv is damaged")])
def test_damaged_metrics_are_bad_input(tmp_path, edit, problem):
    metrics = write_run(tmp_path / "run0", right_of(0)) / "metrics.csv"
    metrics.write_text(edit(metrics.read_text()))
    with pytest.raises(BadInput, match=problem):
        study(tmp_path)


# What is drawn of them


def test_a_byte_order_mark_that_a_spreadsheet_left_is_skipped(tmp_path):
    folder = write_run(tmp_path / "run0", right_of(0))
    for name in ("metrics.csv", "config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert len(study(tmp_path).runs) == 1


def test_curves_are_over_epochs_and_over_passes(tmp_path):
    write_run(tmp_path / "run0", right_of(0), seed=0, sam=True, step_passes=5)
    write_run(tmp_path / "run1", right_of(0), seed=1, sam=True, step_passes=10, curve=(0.2, 0.4, 0.6, 0.8))
    curve, = settings_curves(study(tmp_path).settings)
    assert curve["epochs"].tolist() == [1, 2, 3, 4]
    assert curve["passes"].tolist() == [15, 30, 45, 60]
    assert curve["held_out"].tolist() == [[0.4, 0.6, 0.8, 0.8], [0.2, 0.4, 0.6, 0.8]]
    assert curve["training"].tolist() == [[0.3, 0.5, 0.7, 0.9]] * 2 and curve["val"] == (59 / 60, 4)
    assert curve["loss"].tolist() == [[3, 1.5, 1, 0.75]] * 2


def test_a_setting_that_held_nothing_out_has_no_held_out_curve(tmp_path):
    write_run(tmp_path / "run0", right_of(0), recipe="a.toml")
    write_run(tmp_path / "run1", right_of(0), recipe="b.toml", lr=1.0, curve=None, train=(0.1, 0.2, 0.3, 0.4))
    one, other = settings_curves(study(tmp_path).settings)
    assert (one["name"], other["name"], other["held_out"]) == ("a", "b", None)
    assert one["held_out"] is not None and other["training"].tolist() == [[0.1, 0.2, 0.3, 0.4]]


def test_bins_of_fewer_than_ten_photos_are_left_out(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"run{seed}", right_of(0), seed=seed,
                  confidence=[0.5] * 9 + [0.6] * 10 + [0.9] * 41)
    (_, count, confidence, _), = reliability_curves(study(tmp_path).settings)
    assert count.tolist() == [20, 82] and np.allclose(confidence, [0.6, 0.9])


def test_reliability_curves_are_of_all_seeds_together(tmp_path):
    write_run(tmp_path / "run0", right_of(range(15)), seed=0, confidence=0.9)
    write_run(tmp_path / "run1", right_of(range(45)), seed=1, confidence=0.7)
    (title, count, confidence, accuracy), = reliability_curves(study(tmp_path).settings)
    # (0.75 - 0.9 + 0.7 - 0.25) / 2, the mean over the two seeds of |accuracy - confidence|
    assert title.endswith("\nECE 0.300")
    assert count.tolist() == [60, 60]
    assert np.allclose(confidence, [0.7, 0.9]) and accuracy.tolist() == [0.25, 0.75]


def test_a_study_takes_paths_as_texts(tmp_path):
    assert len(Study([str(write_run(tmp_path / "run0", right_of(0)))]).runs) == 1
