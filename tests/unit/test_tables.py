import csv
import hashlib
import io
import json

import numpy as np
import pytest

from compare import mistakes, tables
from compare.comparisons import sam_pairs, sweeps
from compare.names import slugs
from tests.helpers.run_folders import right_of, study, write_mistakes, write_run


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_numbers_of_the_settings_table_are_those_computed_by_hand(tmp_path):
    # 50 images, of which 40 and 44 right, and two without a label; every answer has a confidence of 0.8
    same = {"targets": [i % 3 for i in range(50)] + [-1, -1], "sam": True, "recipe": "tiny-4.toml"}
    write_run(tmp_path / "run0", right_of(range(10), total=52), seed=3, curve=(0.5, 0.755, 0.765, 0.8),
              train=(0.1, 0.2, 0.3, 0.96), **same)
    write_run(tmp_path / "run1", right_of(range(6), total=52), seed=4, curve=(0.5, 0.765, 0.8, 0.8),
              train=(0.1, 0.2, 0.3, 0.98), probe=60, **same)
    settings = study(tmp_path).settings
    row, = read_csv(tables.settings_csv(settings))
    folders = f"{tmp_path / 'run0'} {tmp_path / 'run1'}"
    texts = [row.pop(name) for name in ("setting", "image_set", "seeds", "folders")]
    assert texts == ["tiny-4", "photos/val", "2", folders]
    expected = {"width": 192, "heads": 3, "depth": 12, "parameters": 5.5e6, "accuracy": 0.84,
                "held_out_accuracy": 0.8, "best_epoch": 4, "train_accuracy": 0.97,
                "accuracy_low": 0.8,
                "accuracy_high": 0.88, "ece": (0 + 0.08) / 2, "gap": (0.96 - 0.8 + 0.98 - 0.88) / 2,
                "epochs_to_95": 2.5, "passes": 80, "images_per_second": 125, "minutes": (2 + 3) / 2,
                "peak_memory_mib": 1003}
    # Wilson at p = 0.84, n = 50, in another form: the roots of (p - x)^2 = z^2 x (1 - x) / n
    z2 = 1.959963984540054**2 / 50
    expected["ci95_high"], expected["ci95_low"] = np.roots([1 + z2, -(2 * 0.84 + z2), 0.84**2])
    assert {name: float(value) for name, value in row.items()} == pytest.approx(expected, abs=1e-6)
    table = tables.settings_section(settings)
    assert f"| 5,500,000 | {folders} | 2 | 0.800 | 4 | 0.970 | 0.840 |" in table
    assert "- tiny-4: vit_tiny_patch16_224, pretrained, SAM(adam); seeds: 3 4.\n" in table
    assert ("All runs share: arch vit_tiny_patch16_224, optimizer SAM(adam), lr 1e-04, batch size 32, "
            "epochs 4, precision fp32.\n") in table
    assert "It alone may choose a setting" in table
    assert "| 0.840 | 0.800 to 0.880 | 0.715 to 0.917 |" in table
    assert "- photos/val: 50 labelled images of 3 classes.\n" in table
    assert "more seeds do not" in table
    runs = read_csv(tables.runs_csv(settings))
    assert [(one["setting"], one["run_folder"], one["seed"]) for one in runs] == [
        ("tiny-4", "run0", "3"), ("tiny-4", "run1", "4")]
    for one, accuracy, minutes in zip(runs, (0.8, 0.88), (2, 3)):
        assert float(one["accuracy"]) == accuracy and float(one["minutes"]) == minutes
        checkpoint = (tmp_path / one["run_folder"] / "best.pt").read_bytes()
        assert one["checkpoint_sha256"] == hashlib.sha256(checkpoint).hexdigest()


def test_accuracies_by_class_are_means_over_seeds(tmp_path):
    write_run(tmp_path / "run0", right_of(range(10), total=50), recipe="tiny-4.toml", seed=3)
    write_run(tmp_path / "run1", right_of(range(6), total=50), recipe="tiny-4.toml", seed=4)
    write_run(tmp_path / "run2", right_of(total=50), recipe="other.toml", lr=1.0, targets=[0] * 50)
    rows = read_csv(tables.per_class_csv(study(tmp_path).settings))
    assert [(row["label"], row["name"], row["images"]) for row in rows] == [
        ("0", "beagle", "17"), ("1", "pug", "17"), ("2", "sphynx", "16"),
        ("0", "beagle", "50"), ("1", "pug", "0"), ("2", "sphynx", "0")]
    # of 0 to 9 four are beagles, of 0 to 5 two
    assert float(rows[0]["tiny-4"]) == pytest.approx((13 + 15) / 34)
    assert [row["other"] for row in rows] == ["", "", "", "1.0", "", ""], "other images, and no images"


def test_without_a_held_out_part_convergence_is_that_of_training(tmp_path):
    write_run(tmp_path / "run0", right_of(0), curve=None, train=(0.5, 0.85, 0.9, 0.9))
    setting, = study(tmp_path).settings
    assert tables.table_row(setting)["epochs_to_95"] == 3, "0.95 of 0.9 is 0.855"
    assert "(training accuracy where nothing was held out)" in tables.SETTINGS_NOTES


def test_a_model_without_numbers_has_dashes(tmp_path):
    folder = write_run(tmp_path / "run0", right_of(0))
    config = json.loads((folder / "config.json").read_text())
    del config["model"]
    (folder / "config.json").write_text(json.dumps(config))
    table = tables.settings_section(study(tmp_path).settings)
    assert f"| – | – | – | – | {folder} | 1 | 0.800 | 4 | 0.900 | 0.983 | one run |" in table


def test_the_legend_has_all_in_which_settings_differ_and_the_rest_once(tmp_path):
    write_run(tmp_path / "a", right_of(0), lr=1e-4)
    write_run(tmp_path / "b", right_of(0), lr=3e-4, seed=1, scratch=True, weights=None)
    assert tables.legend(study(tmp_path).settings) == [
        "All runs share: arch vit_tiny_patch16_224, optimizer adam, batch size 32, epochs 4, "
        "precision fp32.\n\n",
        "- a: vit_tiny_patch16_224, pretrained, adam, weights tiny.safetensors, lr 1e-04; seeds: 0.\n",
        "- b: vit_tiny_patch16_224, from scratch, adam, weights none, lr 3e-04; seeds: 1.\n"]


def test_the_best_epoch_is_the_later_of_ties_and_the_last_where_nothing_was_held_out(tmp_path):
    write_run(tmp_path / "a", right_of(0), curve=(0.4, 0.8, 0.8, 0.7))
    write_run(tmp_path / "b", right_of(0), curve=None, lr=1.0)
    assert [setting.mean("best_epoch") for setting in study(tmp_path).settings] == [3, 4]


def test_differences_have_their_margins_and_p_values(tmp_path):
    write_run(tmp_path / "run0", right_of(range(40)), recipe="tiny-2.toml")
    write_run(tmp_path / "run1", right_of(0), recipe="tiny-4.toml", sam=True)
    read = study(tmp_path)
    section = tables.noise_section(read.comparisons)
    # 39 losses to 0 wins: 1.96 sqrt(40 - 39^2 / 62) / 62
    assert ("| tiny-2 | tiny-4 | -65.0 ± 12.4 | 0 | 39 | < 0.001 | < 0.001 | exceeds the noise | "
            "sam off / on |\n") in section
    assert "adjusted p is below 0.05" in " ".join(section.split())
    section = tables.sam_section(sam_pairs(read.settings), read.comparisons)
    assert "| epochs | tiny-4 | tiny-2 | +65.0 ± 12.4 | 39 | 0 |" in section
    assert section.splitlines()[2].endswith("| exceeds the noise | sam on / off | only one |")


def test_what_cannot_be_compared_is_said(tmp_path):
    write_run(tmp_path / "run0", right_of(0))
    read = study(tmp_path)
    assert tables.noise_section(read.comparisons) == "No two settings were evaluated on the same images.\n"
    assert tables.sam_section([], read.comparisons).startswith("No two settings differ in nothing but SAM")


def test_learning_rates_have_a_row_each(tmp_path):
    write_run(tmp_path / "run0", right_of(0), lr=1e-4, curve=None)
    write_run(tmp_path / "run1", right_of(range(6)), lr=3e-4, curve=None)
    write_run(tmp_path / "run2", right_of(range(12)), lr=3e-4, curve=None, seed=1)
    section = tables.sweep_section(sweeps(study(tmp_path).settings))
    name = "vit_tiny_patch16_224, pretrained, adam, 4 epochs"
    assert f"| {name} | 1e-04 | – | 0.983 | one run |\n" in section
    assert f"| {name} | 3e-04 | – | 0.850 | 0.800 to 0.900 |\n" in section


def test_hard_photos_and_confused_classes_have_a_row_each(tmp_path, monkeypatch):
    write_mistakes(tmp_path)
    settings = study(tmp_path).settings
    hard = mistakes.hard_photos(settings)
    section = tables.hard_photos_section(hard, settings)
    assert section.startswith("3 of 12 photos are wrong in every one of 3 runs.\n")
    assert "| 1_4.jpg | pug | beagle | 0.67 |\n" in section and section.count(".jpg") == 3
    assert "| beagle and pug | 3 | 8 |\n" in tables.confused_section(mistakes.confused_pairs(settings[0]))
    monkeypatch.setattr(tables, "MOST_LISTED", 2)
    section = tables.hard_photos_section(hard, settings)
    assert "; the 2 most confident are listed.\n" in section and section.count(".jpg") == 2


def test_a_setting_without_mistakes_has_none(tmp_path):
    write_run(tmp_path / "run0", right_of(total=9))
    settings = study(tmp_path).settings
    assert tables.confused_section(mistakes.confused_pairs(settings[0])) == "No mistake on these images.\n"
    assert tables.hard_photos_section(mistakes.hard_photos(settings), settings) == (
        "0 of 9 photos are wrong in every one of 1 runs.\n")


def test_slugs_are_distinct():
    assert slugs(["tiny-4, lr 1e-04", "tiny-4 lr 1e-04", "$", "ä|b"]) == [
        "tiny-4_lr_1e-04", "tiny-4_lr_1e-04__2", "setting", "ä_b"]


def test_a_bar_in_a_name_does_not_break_the_table():
    assert tables.markdown_table(["a|b", "c"], [["d", 1]]) == "| a\\|b | c |\n|---|---|\n| d | 1 |\n"
