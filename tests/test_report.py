import csv
import json
import math
import shlex
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import p1_report
from common.errors import BadInput
from common.files import sha256
from compare import runs, statistics, tables
from compare.claims import (
    NOT_SUPPORTED,
    OPEN,
    SUPPORTED,
    Comparisons,
    claims,
    differing,
    sam_pairs,
    size_pairs,
    sweeps,
)
from compare.mistakes import confused_pairs, hard_photos
from plots.report import draw_confusion

SETTINGS = {"data": "p1_data", "holdout": 0.1, "skip_bad": False, "recipe": None, "arch": "vit_tiny_patch16_224",
            "weights": "tiny.safetensors", "scratch": False, "optimizer": "adam", "sam": False, "rho": 0.05,
            "adaptive": False, "climb": "process", "epochs": 4, "batch_size": 32, "lr": 1e-4, "ema": None,
            "precision": "fp32", "seed": 0, "workers": None, "device": "auto", "save_every": None, "resume": False,
            "processes": 1}
NAMES = ["beagle", "pug", "sphynx"]


def write_run(folder, right, *, confidence=0.8, curve=(0.4, 0.6, 0.8, 0.8), train=(0.3, 0.5, 0.7, 0.9), step_passes=10,
              targets=None, images=None, class_names=NAMES, parameters=5_500_000, predicted=None, flip=False, probe=None, **settings):
    """A run folder as p1_train.py and p1_eval.py leave it.

    `right` (images,) says which images the model gets right; of the others it predicts the next class, or `predicted`.
    `curve` is the held-out accuracy of each epoch, or None where nothing is held out.
    """
    folder.mkdir(parents=True)
    settings = {**SETTINGS, "output": str(folder), "epochs": len(train), **settings}
    config = {"settings": settings, "model": {"parameters": parameters, "width": 192, "heads": 3, "depth": 12},
              "command": f"p1_train.py --data p1_data --output {folder}", "git_commit": None, "versions": {}}
    if probe:
        config["probe"] = {"C": 1.0, "accuracy": 0.9, "seconds": probe}
    (folder / "config.json").write_text(json.dumps(config))
    passes = step_passes * (2 if settings["sam"] else 1)
    rows = [{"epoch": i + 1, "lr": 1e-4, "train_loss": 3 / (i + 1), "train_accuracy": accuracy,
             "holdout_loss": None, "holdout_accuracy": None if curve is None else curve[i], "skipped_steps": 0,
             "images_per_second": 50 * (i + 1), "seconds": 30, "passes": passes, "peak_memory_mib": 1000 + i}
            for i, accuracy in enumerate(train)]
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "best.pt").write_text(str(folder))

    right = np.asarray(right, dtype=bool)
    targets = np.arange(len(right)) % len(class_names) if targets is None else np.asarray(targets)
    predicted = np.where(right, targets, (targets + 1) % len(class_names)) if predicted is None else np.asarray(predicted)
    confidence = np.broadcast_to(confidence, len(right))
    probabilities = np.repeat((1 - confidence)[:, None] / (len(class_names) - 1), len(class_names), 1)
    probabilities[np.arange(len(right)), predicted] = confidence
    labelled = targets >= 0
    correct = int((predicted == targets)[labelled].sum())
    (folder / "eval.json").write_text(json.dumps({
        "accuracy": correct / max(1, labelled.sum()), "correct": correct, "labelled": int(labelled.sum()),
        "images": len(right), "flip": flip, "checkpoint_sha256": sha256(folder / "best.pt")}))
    names = [f"{target}_{i}.jpg" for i, target in enumerate(targets)]
    np.savez(folder / "eval.npz", names=np.array(names), targets=targets, probabilities=probabilities.astype(np.float32),
             labels=np.array([str(i) for i in range(len(class_names))]), class_names=np.array(class_names),
             folder=np.array(str(images or folder.parent / "photos" / "val")))
    return folder


def right_of(*wrong, total=60):
    """All of so many images but those in `wrong`, which are indices or ranges of them."""
    indices = [i for one in wrong for i in (one if isinstance(one, range) else [one])]
    return ~np.isin(np.arange(total), indices)


def read(folder):
    """The settings of all runs in a folder, and the lines for those that are left out."""
    found, left_out = runs.read_runs(sorted(path for path in folder.iterdir() if path.name != "photos"))
    return runs.group_runs(found), left_out


def claims_of(folder):
    settings, _ = read(folder)
    return claims(settings, Comparisons(settings))


def report(folder, *arguments):
    return p1_report.main([*map(str, sorted(folder.glob("run*"))), "--output", str(folder / "out"), *map(str, arguments)])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correct, total, low, high", [
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
])
def test_wilson_interval_agrees_with_published_values(correct, total, low, high):
    assert statistics.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("wins, losses", [(1, 9), (9, 1), (0, 5), (6, 6), (7, 7), (0, 0), (3, 21), (12, 30)])
def test_mcnemar_is_the_exact_two_sided_binomial_tail(wins, losses):
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    assert statistics.mcnemar(wins, losses) == pytest.approx(float(min(1, 2 * Fraction(tail, 2**total))), rel=1e-12)


def test_mcnemar_by_hand():
    assert statistics.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10) == pytest.approx(0.021484375)
    # Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91, table 1 (airway hyper-responsiveness): b 1, c 7
    assert statistics.mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0] and statistics.holm([0.03]) == [0.03] and statistics.holm([]) == []


def test_wins_count_images_that_the_larger_share_of_runs_gets_right():
    first = np.array([[1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0]], dtype=bool)  # 1, 1/3, 0, 2/3, 1, 1/3
    second = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1]], dtype=bool)  # 1, 1/2, 1/2, 1/2, 0, 1/2
    assert statistics.wins_and_losses(first, second) == (2, 3)
    assert statistics.wins_and_losses(second, first) == (3, 2)
    assert statistics.wins_and_losses(np.tile(first, (3, 1)), first) == (0, 0), "equal shares of 3 and of 9 runs"


def test_paired_margin_by_hand():
    first, second = np.zeros((1, 50), dtype=bool), np.zeros((1, 50), dtype=bool)
    first[0, :9], second[0, 9:12] = True, True  # b = 9, c = 3
    # Wald's variance of a difference of paired shares, with cells of 9.5, 3.5 and 39 of 52
    shares = np.array([9.5, 3.5, 39]) / 52
    variance = shares @ np.array([1, -1, 0])**2 - (shares @ [1, -1, 0])**2
    assert statistics.paired_margin(first, second) == pytest.approx(1.959964 * math.sqrt(variance / 52), rel=1e-6)
    assert statistics.paired_margin(np.tile(first, (3, 1)), second) == pytest.approx(statistics.paired_margin(first, second))
    assert statistics.paired_margin(first[:, :4], first[:, :4]) > 0.3, "four images without a difference prove nothing"


def test_calibration_error_by_hand():
    # one bin of (0.4667, 0.5333]: 1 of 2 right at 0.5; one of (0.8667, 0.9333]: 1 of 4 right at 0.9
    confidence, correct = [0.5, 0.5, 0.9, 0.9, 0.9, 0.9], [1, 0, 1, 0, 0, 0]
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.65)
    assert statistics.expected_calibration_error([1.0, 1.0], [1, 1]) == 0


def test_calibration_error_agrees_with_a_plain_loop():
    generator = np.random.default_rng(3)
    confidence = np.append(generator.random(500), [1 / 15, 2 / 15, 1.0])
    correct = generator.random(503) < confidence**2
    expected = 0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    # the upper edge of a bin belongs to it
    assert statistics.reliability([1 / 15, 2 / 15, 1.0], [1, 1, 1])[0].tolist() == [1, 1, *[0] * 12, 1]


def test_the_most_confused_pairs_are_unordered():
    counts = statistics.confusion_counts([0, 0, 1, 1, 2, 2, 2], [1, 0, 0, 2, 2, 1, 1], 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
    assert statistics.most_confused(counts) == [(3, 1, 2), (2, 0, 1)]
    assert statistics.most_confused(counts, 1) == [(3, 1, 2)]


# Run folders -------------------------------------------------------------------------------------------------------


def test_seeds_are_grouped_and_settings_named(tmp_path):
    write_run(tmp_path / "a0", right_of(0), seed=0, recipe="recipes/tiny-4.toml", workers=1, device="cpu")
    write_run(tmp_path / "a1", right_of(1), seed=1, recipe="elsewhere/tiny-4.toml", workers=2, resume=True)
    write_run(tmp_path / "b0", right_of(2), recipe="recipes/tiny-4.toml", lr=3e-4, train=(0.5,) * 14, curve=(0.5,) * 14)
    write_run(tmp_path / "c0", right_of(3), sam=True)
    write_run(tmp_path / "d0", right_of(3), scratch=True, weights=None, sam=True, adaptive=True, ema=None)
    write_run(tmp_path / "e0", right_of(3), scratch=True, weights=None, sam=True, adaptive=True, ema=0.99)
    settings, left_out = read(tmp_path)
    assert not left_out
    assert [setting.name for setting in settings] == [
        "tiny-4, epochs 4, lr 1e-04", "tiny-4, epochs 14, lr 3e-04", "vit_tiny_patch16_224, pretrained, SAM(adam)",
        "vit_tiny_patch16_224, from scratch, ASAM(adam), ema none", "vit_tiny_patch16_224, from scratch, ASAM(adam), ema 0.99"]
    assert [len(setting.runs) for setting in settings] == [2, 1, 1, 1, 1]
    assert settings[0].in_prose == "tiny-4 (epochs 4, lr 1e-04)"


def test_a_flag_that_an_older_version_did_not_have_counts_as_not_given(tmp_path):
    write_run(tmp_path / "a", right_of(), seed=0)
    write_run(tmp_path / "b", right_of(), seed=1, head_init=None)
    write_run(tmp_path / "c", right_of(), seed=2, head_init="probe")
    settings, _ = read(tmp_path)
    assert [setting.name.split(", ")[-1] for setting in settings] == ["head init none", "head init probe"]


def test_two_runs_of_one_seed_are_refused(tmp_path):
    write_run(tmp_path / "one", right_of(0))
    write_run(tmp_path / "two", right_of(1))
    with pytest.raises(BadInput, match="one and .*two are runs of one setting with the same seed, 0"):
        read(tmp_path)


def test_seeds_of_one_setting_on_different_images_are_refused(tmp_path):
    write_run(tmp_path / "one", right_of(0))
    write_run(tmp_path / "two", right_of(1, total=30), seed=1)
    with pytest.raises(BadInput, match="different images"):
        read(tmp_path)


def test_flipped_images_are_other_images(tmp_path):
    """Means of two views are not compared with single ones."""
    write_run(tmp_path / "plain", right_of(0))
    write_run(tmp_path / "flipped", right_of(0), flip=True, lr=1.0)
    settings, _ = read(tmp_path)
    assert {setting.image_set for setting in settings} == {"photos/val", "photos/val, flipped too"}
    assert not Comparisons(settings)


def test_runs_that_cannot_be_used_are_left_out_by_name(tmp_path, capsys):
    write_run(tmp_path / "run0", right_of(0))
    unfinished = write_run(tmp_path / "run1", right_of(0), lr=1.0)
    config = json.loads((unfinished / "config.json").read_text())
    config["command"] += " --resume"
    config["settings"]["processes"] = 2
    (unfinished / "config.json").write_text(json.dumps(config))
    lines = (unfinished / "metrics.csv").read_text().splitlines(keepends=True)
    (unfinished / "metrics.csv").write_text("".join(lines[:-1]))
    (write_run(tmp_path / "run 2", right_of(0), lr=2.0) / "eval.json").unlink()
    (write_run(tmp_path / "run3", right_of(0), lr=3.0, data="demo") / "best.pt").write_text("trained further")
    (write_run(tmp_path / "run4", right_of(0), lr=4.0) / "eval.npz").write_text("x")
    write_run(tmp_path / "run5", right_of(0), lr=5.0, targets=[-1] * 60)
    other = write_run(tmp_path / "run6", right_of(0), lr=6.0)
    (other / "eval.npz").write_bytes((write_run(tmp_path / "x", right_of(0, 1)) / "eval.npz").read_bytes())
    (write_run(tmp_path / "run7", right_of(0), lr=7.0) / "metrics.csv").unlink()
    assert report(tmp_path) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: left out: ")]
    evaluate = "python p1_eval.py p1_data/val --checkpoint"
    for line, (name, words) in zip(said, [
            ("run 2", f"was not evaluated: {evaluate} {shlex.quote(str(tmp_path / 'run 2' / 'best.pt'))}"),
            ("run1", "is not finished (3 of 4 epochs): torchrun --nproc-per-node 2 p1_train.py --data p1_data "
                     f"--output {unfinished} --resume"),
            ("run3", "was evaluated with an older best.pt: python p1_eval.py data/demo/val --checkpoint"),
            ("run4", f"has a damaged evaluation: {evaluate}"), ("run5", "was evaluated on images without labels"),
            ("run6", "of different evaluations"), ("run7", "is not finished (0 of 4 epochs): python p1_train.py")], strict=True):
        assert line.startswith(f"note: left out: {tmp_path / name} ") and words in line and line.count("--resume") < 2
    assert len(rows(tmp_path / "out" / "table.csv")) == 1
    assert "was not evaluated" in (tmp_path / "out" / "report.md").read_text()


def test_nothing_left_or_no_run_is_bad_input(tmp_path, capsys):
    (write_run(tmp_path / "run0", right_of(0)) / "eval.npz").unlink()
    assert report(tmp_path) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: none of the runs") and "p1_eval.py" in said[1] and len(said) == 2
    (tmp_path / "run1").mkdir()
    assert report(tmp_path) == 2
    assert "run1 is not a run folder" in capsys.readouterr().err
    (tmp_path / "run1" / "config.json").write_text("{")
    assert report(tmp_path) == 2
    assert "config.json is damaged" in capsys.readouterr().err
    (tmp_path / "run1" / "config.json").write_text('{"settings": {"epochs": 3}}')
    assert report(tmp_path) == 2
    assert "is no run of p1_train.py" in capsys.readouterr().err
    assert p1_report.main([str(tmp_path / "run0"), "--output", str(tmp_path / "run0")]) == 2
    assert "holds a training run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# The table ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_table_are_those_computed_by_hand(tmp_path):
    # 50 images, of which 40 and 44 right, and two without a label; every answer has a confidence of 0.8
    targets = [i % 3 for i in range(50)] + [-1, -1]
    write_run(tmp_path / "run0", right_of(range(10), total=52), targets=targets, sam=True, recipe="tiny-4.toml", seed=3,
              curve=(0.5, 0.755, 0.765, 0.8), train=(0.1, 0.2, 0.3, 0.96))
    write_run(tmp_path / "run1", right_of(range(6), total=52), targets=targets, sam=True, recipe="tiny-4.toml", seed=4,
              curve=(0.5, 0.765, 0.8, 0.8), train=(0.1, 0.2, 0.3, 0.98), probe=60)
    assert report(tmp_path) == 0
    row, = rows(tmp_path / "out" / "table.csv")
    assert (row.pop("setting"), row.pop("image_set"), row.pop("seeds")) == ("tiny-4", "photos/val", "3 4")
    expected = {"width": 192, "heads": 3, "depth": 12, "parameters": 5.5e6, "accuracy": 0.84, "accuracy_low": 0.8,
                "accuracy_high": 0.88, "ece": (0 + 0.08) / 2, "gap": (0.96 - 0.8 + 0.98 - 0.88) / 2,
                "epochs_to_95": 2.5, "passes": 80, "images_per_second": 125, "minutes": (2 + 3) / 2, "peak_memory_mib": 1003}
    # Wilson at p = 0.84, n = 50, in another form: the roots of (p - x)^2 = z^2 x (1 - x) / n
    z2 = 1.959963984540054**2 / 50
    expected["ci95_high"], expected["ci95_low"] = np.roots([1 + z2, -(2 * 0.84 + z2), 0.84**2])
    assert {name: float(value) for name, value in row.items()} == pytest.approx(expected, abs=1e-6)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| tiny-4 | photos/val | 192 | 3 | 12 | 5,500,000 | 3 4 | 0.840 | 0.800 to 0.880 | 0.715 to 0.917 |" in table
    assert "photos/val: 50 labelled images of 3 classes" in table and "more seeds do not narrow it" in table
    assert "the held-out accuracy is at least 95 %" in table
    per_class = rows(tmp_path / "out" / "per_class.csv")
    assert [(row["label"], row["name"], row["images"]) for row in per_class] == [
        ("0", "beagle", "17"), ("1", "pug", "17"), ("2", "sphynx", "16")]
    # of 0 to 9 four are beagles, of 0 to 5 two
    assert float(per_class[0]["tiny-4"]) == pytest.approx((13 + 15) / 34)


def test_without_a_held_out_part_convergence_is_that_of_training(tmp_path):
    write_run(tmp_path / "run0", right_of(0), curve=None, train=(0.5, 0.85, 0.9, 0.9))
    settings, _ = read(tmp_path)
    assert tables.table_row(settings[0])["epochs_to_95"] == 3, "0.95 of 0.9 is 0.855"
    assert "the training accuracy (nothing was held out) is at least" in tables.notes(settings)


def test_a_model_without_numbers_has_dashes(tmp_path):
    folder = write_run(tmp_path / "run0", right_of(0))
    config = json.loads((folder / "config.json").read_text())
    del config["model"]
    (folder / "config.json").write_text(json.dumps(config))
    settings, _ = read(tmp_path)
    assert "| – | – | – | – | 0 | 0.983 | one run |" in tables.markdown_table(*tables.settings_cells([tables.table_row(settings[0])]))


def test_settings_on_other_images_share_the_table_and_nothing_else(tmp_path):
    write_run(tmp_path / "run0", right_of(range(30)), recipe="tiny-1.toml", images=tmp_path / "drawn" / "val",
              targets=[(i + 1) % 3 for i in range(60)])
    write_run(tmp_path / "run1", right_of(0), recipe="tiny-2.toml", lr=2e-4)
    write_run(tmp_path / "run2", right_of(1), recipe="tiny-3.toml", sam=True)
    assert report(tmp_path) == 0
    assert [row["image_set"] for row in rows(tmp_path / "out" / "table.csv")] == ["drawn/val", "photos/val", "photos/val"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "tiny-2 and tiny-3 do not differ" in text and "over all 1 comparisons" in text
    assert "Learning rates" not in text, "tiny-1 and tiny-2 differ in the rate alone, but not on the same images"
    assert rows(tmp_path / "out" / "per_class.csv")[0]["tiny-2"] == ""
    assert (tmp_path / "out" / "report.md").read_text().count("## Mistakes on ") == 2


# Comparisons and claims --------------------------------------------------------------------------------------------


def test_differences_in_words(tmp_path):
    write_run(tmp_path / "run0", right_of(range(40)), recipe="tiny-2.toml", seed=0)
    write_run(tmp_path / "run1", right_of(0), recipe="tiny-4.toml", sam=True)
    write_run(tmp_path / "run2", right_of(1, 2), recipe="tiny-3.toml", sam=True, rho=0.1)
    settings, _ = read(tmp_path)
    said = tables.noise_section(Comparisons(settings))
    # 39 images to none; 38 (all of the 40 but 1 and 2); 0 against 1, 2: 2 (1/2)^3 (1 + 3)
    assert "tiny-4 beats tiny-2 by 65.0 points (p < 0.001)\n" in said
    assert "tiny-3 beats tiny-2 by 63.3 points (p < 0.001)\n" in said
    assert "tiny-4 and tiny-3 do not differ by more than the noise (1.7 points, p = 1.00)\n" in said
    # 6 images to none of tiny-4: p = 2 / 2^6 is the third largest of six, more than the noise by itself alone
    write_run(tmp_path / "run3", right_of(0, range(10, 16)), recipe="tiny-5.toml", sam=True, rho=0.2, seed=1)
    settings, _ = read(tmp_path)
    found = Comparisons(settings).between(settings[3], settings[1])
    assert (found.wins, found.losses, found.p) == (0, 6, 2 / 2**6) and found.adjusted == pytest.approx(3 * 2 / 2**6)
    assert not found.significant and "tiny-5 and tiny-4 do not differ" in tables.noise_section([found])


def test_ranges_over_seeds_that_overlap_are_no_difference(tmp_path):
    for seed, (one, other) in enumerate([(range(0), range(20)), (range(21), range(21, 42))]):
        write_run(tmp_path / f"run{seed}", right_of(one), recipe="a.toml", seed=seed)
        write_run(tmp_path / f"run{seed + 2}", right_of(other), recipe="b.toml", seed=seed, lr=1.0)
    settings, _ = read(tmp_path)
    comparison, = Comparisons(settings)
    # images 0 to 19: right in 1 of 2 seeds of each; 20: 1 of 2 against 2 of 2; 21 to 41: 2 of 2 against 1 of 2
    assert (comparison.wins, comparison.losses) == (21, 1) and comparison.significant and not comparison.exceeds_noise
    assert "a is 16.7 points above b on these images (p < 0.001), but their ranges over seeds overlap" in \
        tables.noise_section([comparison])


def write_sam(folder, *, plain, sam, plain_train=0.95, sam_train=0.95, plain_curve=(0.4, 0.6, 0.8, 0.8),
              sam_curve=(0.4, 0.6, 0.8, 0.8)):
    """A run without and one with SAM of 200 images, of which so many are wrong, from the first on."""
    for name, wrong, train, curve in (("adam", plain, plain_train, plain_curve), ("sam", sam, sam_train, sam_curve)):
        write_run(folder / name, right_of(range(wrong), total=200), recipe=f"{name}.toml", sam=name == "sam", curve=curve,
                  train=(*curve[:-1], train))
    return {claim.statement: claim for claim in claims_of(folder)}


def test_sam_is_better(tmp_path):
    found = write_sam(tmp_path, plain=40, sam=10, sam_train=0.97, sam_curve=(0.8, 0.8, 0.8, 0.8))
    faster = found["SAM converges faster, counted in epochs"]
    assert faster.verdict == SUPPORTED
    assert "sam reaches 76.0 % held-out accuracy in epoch 1, adam in epoch 3;" in faster.reason
    faster = found["SAM converges faster, counted in forward-backward passes"]
    assert faster.verdict == SUPPORTED and "after 20 passes, adam after 30 passes" in faster.reason
    assert "one run each" in faster.reason
    overfits = found["SAM overfits less"]
    # gaps 0.95 - 0.8 and 0.97 - 0.95; margin 1.96 sqrt(31 - 900 / 202) / 202
    assert overfits.verdict == SUPPORTED
    assert "+2.0 points for sam and +15.0 points for adam" in overfits.reason and "differ by 13.0 points" in overfits.reason
    assert "sam beats adam by 15.0 points" in overfits.reason and "± 5.0 points" in overfits.reason


def test_sam_is_not_better(tmp_path):
    found = write_sam(tmp_path, plain=10, sam=40, sam_curve=(0.2, 0.4, 0.6, 0.8))
    faster = found["SAM converges faster, counted in epochs"]
    assert faster.verdict == NOT_SUPPORTED and "in epoch 4, adam in epoch 3" in faster.reason
    assert found["SAM converges faster, counted in forward-backward passes"].verdict == NOT_SUPPORTED
    assert found["SAM overfits less"].verdict == NOT_SUPPORTED
    assert "adam beats sam" in found["SAM overfits less"].reason


def test_fewer_epochs_may_be_more_passes(tmp_path):
    found = write_sam(tmp_path, plain=10, sam=10, sam_curve=(0.4, 0.8, 0.8, 0.8))
    assert found["SAM converges faster, counted in epochs"].verdict == SUPPORTED
    assert found["SAM converges faster, counted in forward-backward passes"].verdict == NOT_SUPPORTED, "40 against 30"


def test_gaps_within_the_noise_do_not_say(tmp_path):
    found = write_sam(tmp_path, plain=13, sam=10)
    overfits = found["SAM overfits less"]
    assert overfits.verdict == OPEN and "the gaps differ by 1.5 points, no more than the noise of 200 images" in overfits.reason


def test_seeds_whose_ranges_overlap_do_not_say(tmp_path):
    for seed, last in enumerate((0.8, 0.9)):
        write_run(tmp_path / f"a{seed}", right_of(range(5 * seed)), sam=True, seed=seed, train=(0.4, 0.8, 0.8, last),
                  curve=(0.1, 0.2 + seed / 2, 0.8, 0.8))
        write_run(tmp_path / f"b{seed}", right_of(range(5 * seed)), seed=seed, train=(0.4, 0.8, 0.8, last),
                  curve=(0.1, 0.2, 0.4 + seed / 2, 0.8))
    found = {claim.statement: claim for claim in claims_of(tmp_path)}
    assert found["SAM overfits less"].verdict == OPEN and "it takes more seeds" in found["SAM overfits less"].reason
    faster = found["SAM converges faster, counted in epochs"]
    assert faster.verdict == OPEN and "in epoch 3," in faster.reason and "in epoch 3.5 (3 to 4)" in faster.reason


def test_runs_of_one_setting_do_not_say_what_it_takes_two_for(tmp_path):
    write_run(tmp_path / "run0", right_of(0))
    found = claims_of(tmp_path)
    assert len(found) == 5 and {claim.verdict for claim in found} == {OPEN}
    assert "--scratch" in found[0].reason and "with SAM" in found[3].reason and "--arch" in found[4].reason


@pytest.mark.parametrize("pretrained, scratch, verdict, words", [
    ((0.5, 0.7, 0.8, 0.8), (0.1, 0.2, 0.3, 0.4), SUPPORTED, "38.0 % held-out accuracy in epoch 1, scratch in epoch 4;"),
    # the run from scratch learns nothing, and reaches that at once
    ((0.5, 0.7, 0.8, 0.8), (0.03, 0.03, 0.03, 0.03), SUPPORTED, "is at 50.0 %, and scratch never gets beyond 3.0 % in 4 epochs"),
    ((0.1, 0.2, 0.3, 0.8), (0.6, 0.7, 0.8, 0.8), NOT_SUPPORTED, "in epoch 4, scratch in epoch 3;"),
    ((0.8, 0.8, 0.8, 0.8), (0.8, 0.8, 0.8, 0.8), NOT_SUPPORTED, "in epoch 1, scratch in epoch 1;"),
])
def test_pretraining_converges_faster(tmp_path, pretrained, scratch, verdict, words):
    write_run(tmp_path / "a", right_of(0), recipe="tiny.toml", curve=pretrained, lr=1e-4)
    write_run(tmp_path / "b", right_of(0), recipe="scratch.toml", curve=scratch, lr=1e-3, scratch=True, weights=None)
    write_run(tmp_path / "c", right_of(0), recipe="sam.toml", curve=(1, 1, 1, 1), sam=True)
    found = [claim for claim in claims_of(tmp_path) if claim.statement == "pretraining converges faster"]
    assert [claim.verdict for claim in found] == [verdict] and words in found[0].reason
    assert "they differ in lr 1e-04 and 1e-03 too" in found[0].reason


@pytest.mark.parametrize("large, small, total, verdict, words", [
    (range(10), range(110), 400, NOT_SUPPORTED, "the difference is +25.0 ±"),
    (range(10), range(12), 2000, SUPPORTED, "the difference is +0.1 ±"),
    # b = 3, c = 1 of 100: 100 (margin / (3 - 2))^2 with margin = 1.96 sqrt(5 - 4 / 102) / 102 = 4.28
    (range(1), range(1, 4), 100, OPEN, "the difference is +2.0 ± 4.3 points, where less than 3 counts as little: "
                                       "it takes about 1,800 images"),
])
def test_size_matters_little(tmp_path, large, small, total, verdict, words):
    write_run(tmp_path / "a", right_of(small, total=total), recipe="tiny.toml")
    write_run(tmp_path / "b", right_of(large, total=total), recipe="small.toml", arch="vit_small_patch16_224",
              weights="small.safetensors", parameters=22_000_000)
    found, = (claim for claim in claims_of(tmp_path) if claim.statement == "size matters little here")
    assert found.verdict == verdict and words in found.reason
    assert "small has 22.0 M parameters, tiny 5.5 M" in found.reason
    settings, _ = read(tmp_path)
    assert [[setting.name for setting in pair] for pair in size_pairs(settings)] == [["small", "tiny"]]


def pair_names(folder):
    settings, _ = read(folder)
    return [(pair.at, pair.plain.runs[0].folder.name, pair.sam.runs[0].folder.name, pair.chosen) for pair in sam_pairs(settings)]


def test_sam_is_compared_at_equal_epochs_and_at_equal_passes(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, lr=2e-4)
    write_run(tmp_path / "adam", right_of(0))
    write_run(tmp_path / "long", right_of(0), train=(0.5,) * 8, curve=(0.5,) * 8)
    write_run(tmp_path / "longer", right_of(0), train=(0.5,) * 9, curve=(0.5,) * 9)
    write_run(tmp_path / "adamw", right_of(0), optimizer="adamw")
    write_run(tmp_path / "ema", right_of(0), ema=0.9)
    assert pair_names(tmp_path) == [("epochs", "adam", "sam", ""), ("passes", "long", "sam", "")]


def test_passes_within_five_percent_are_equal(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, step_passes=100)  # 800
    write_run(tmp_path / "a", right_of(0), train=(0.5,) * 8, curve=(0.5,) * 8, step_passes=105)  # 840
    write_run(tmp_path / "b", right_of(0), train=(0.5,) * 7, curve=(0.5,) * 7, step_passes=121)  # 847
    assert pair_names(tmp_path) == [("passes", "a", "sam", "")]


def test_the_learning_rate_is_chosen_by_the_held_out_part_and_never_by_val(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True)
    write_run(tmp_path / "good_on_val", right_of(), lr=2e-4, curve=(0.4, 0.6, 0.7, 0.8))
    write_run(tmp_path / "good_held_out", right_of(range(9)), lr=3e-4, curve=(0.4, 0.9, 0.7, 0.7))  # its best epoch
    assert pair_names(tmp_path) == [("epochs", "good_held_out", "sam", "the learning rates of the highest held-out accuracy")]


def test_with_nothing_held_out_the_same_learning_rate_is_compared(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, lr=3e-4, curve=None)
    write_run(tmp_path / "a", right_of(), lr=1e-4, curve=None)
    write_run(tmp_path / "b", right_of(range(9)), lr=3e-4, curve=None)
    assert pair_names(tmp_path) == [("epochs", "b", "sam", "the same learning rate, since nothing was held out")]


def test_sweeps_differ_in_the_learning_rate_alone(tmp_path):
    write_run(tmp_path / "run0", right_of(0), lr=3e-4, recipe="one.toml")
    write_run(tmp_path / "run1", right_of(0), lr=1e-4, recipe="two.toml")
    write_run(tmp_path / "run2", right_of(0), lr=1e-4, sam=True)
    write_run(tmp_path / "run3", right_of(range(6)), lr=3e-4, sam=True, curve=(0.5, 0.9, 0.8, 0.8))
    write_run(tmp_path / "run4", right_of(0), lr=3e-4, sam=True, rho=0.1)
    settings, _ = read(tmp_path)
    assert [[setting.settings["lr"] for setting in sweep] for sweep in sweeps(settings)] == [[1e-4, 3e-4], [1e-4, 3e-4]]
    assert set(differing(settings[0], settings[4])) == {"sam", "rho"}
    assert report(tmp_path) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| vit_tiny_patch16_224, pretrained, SAM(adam), 4 epochs | 3e-04 | 0.900 | 0.900 | one run |" in text
    assert Image.open(tmp_path / "out" / "learning_rates.png").width > 500


# Mistakes ----------------------------------------------------------------------------------------------------------


def write_mistakes(folder):
    """Two settings, one of two seeds, on 12 images of which 3 are wrong in every run; and their photos."""
    photos = folder / "photos" / "val"
    photos.mkdir(parents=True)
    targets = np.arange(12) % 3
    for i, target in enumerate(targets):
        Image.new("RGB", (40, 30), (20 * i, 100, 100)).save(photos / f"{target}_{i}.jpg")
    for name, wrong, confidence, settings in (
            ("run0", {0: 1, 3: 1, 4: 0, 6: 2}, 0.6, {"seed": 0}), ("run1", {0: 1, 4: 0, 6: 1}, 0.9, {"seed": 1}),
            ("run2", {0: 2, 4: 0, 6: 1}, 0.5, {"sam": True})):
        predicted = targets.copy()
        predicted[list(wrong)] = list(wrong.values())
        write_run(folder / name, targets == predicted, predicted=predicted, confidence=confidence, images=photos,
                  recipe="sam.toml" if settings.get("sam") else "a/b $x$.toml", **settings)
    return photos


def test_confused_pairs_and_hard_photos(tmp_path):
    write_mistakes(tmp_path)
    first, second = read(tmp_path)[0]
    # of the two seeds: 0 -> 1 (image 0 twice, 3 and 6 once), 1 -> 0 (image 4 twice), 0 -> 2 (image 6 once)
    (count, i, j, mistakes), (other_count, *other, _) = confused_pairs(first)
    assert (count, i, j) == (3, 0, 1) and (other_count, *other) == (0.5, 0, 2)
    assert [(one.image, one.predicted, round(one.probability, 4)) for one in mistakes] == [(0, 1, 0.9), (4, 0, 0.9), (6, 1, 0.9)]
    hard = hard_photos([first, second])
    assert [(one.image, one.predicted, round(one.probability, 4)) for one in hard] == [
        (4, 0, round((0.6 + 0.9 + 0.5) / 3, 4)), (0, 1, round((0.6 + 0.9 + 0.25) / 3, 4)), (6, 1, round((0.2 + 0.9 + 0.5) / 3, 4))]
    assert tables.mistake(first.images, hard[0]) == "1_4.jpg: pug -> beagle (0.67)"


def test_a_report_has_all_files_and_links_them(tmp_path):
    photos = write_mistakes(tmp_path)
    assert report(tmp_path) == 0
    figures = {"curves.png", "calibration.png", "hard_photos.png", "confusion_sam.png", "confused_sam.png",
               "confusion_b_x.png", "confused_b_x.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == figures | {"report.md", "table.md", "table.csv", "per_class.csv"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"]({name})" in text for name in figures)
    assert "3 of the 12 photos are wrong in every one of 3 runs" in text and "- 1_4.jpg: pug -> beagle (0.67)\n" in text
    assert "- beagle and pug: 3 of 8 images\n" in text
    photos.rename(tmp_path / "moved")
    (tmp_path / "out").rename(tmp_path / "before")
    assert report(tmp_path, "--images", tmp_path / "moved") == 0
    assert (tmp_path / "out" / "hard_photos.png").read_bytes() == (tmp_path / "before" / "hard_photos.png").read_bytes()


def test_photos_that_are_gone_leave_their_figures_out(tmp_path, capsys):
    photos = write_mistakes(tmp_path)
    (photos / "1_4.jpg").unlink()
    assert report(tmp_path) == 0
    said = capsys.readouterr().err
    assert "hard_photos.png, confused_b_x.png, confused_sam.png are left out" in said and str(photos) in said
    assert not (tmp_path / "out" / "hard_photos.png").exists() and (tmp_path / "out" / "confusion_sam.png").exists()
    assert "hard_photos.png)" not in (tmp_path / "out" / "report.md").read_text()


def test_a_setting_without_mistakes(tmp_path):
    write_run(tmp_path / "run0", right_of(total=9))
    assert report(tmp_path) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "It makes no mistake" in text and "No photo of the 9 is wrong" in text and "confused_" not in text


def test_of_very_many_classes_those_with_mistakes_are_drawn():
    counts = np.diag([3] * 69 + [0])  # the last class has no image
    counts[68, 0] = counts[5, 60] = 1
    axes = draw_confusion(counts, [f"class {i}" for i in range(70)], "many").axes[0]
    drawn = [label.get_text() for label in axes.get_yticklabels()]
    assert len(drawn) == 60 and {"class 0", "class 5", "class 60", "class 68"} <= set(drawn)
    row, column = drawn.index("class 68"), drawn.index("class 0")
    assert axes.images[0].get_array()[row, column] == 1 / 4
    assert "the 60 of 70 classes with the most mistakes" in axes.get_title()


def test_slugs_are_distinct():
    assert tables.slugs(["tiny-4, lr 1e-04", "tiny-4 lr 1e-04", "$", "ä|b"]) == [
        "tiny-4_lr_1e-04", "tiny-4_lr_1e-04__2", "setting", "ä_b"]


def test_a_bar_in_a_name_does_not_break_the_table():
    assert tables.markdown_table(["a|b"], [["c"]]) == "| a\\|b |\n|---|\n| c |\n"
