import pytest

from compare.comparisons import (
    EXCEEDS,
    OVERLAP,
    WITHIN,
    causes,
    differing,
    sam_pairs,
    size_pairs,
    sweep_curves,
    sweeps,
)
from tests.helpers.run_folders import right_of, study, write_run


def test_a_comparison_says_whether_the_difference_exceeds_the_noise(tmp_path):
    write_run(tmp_path / "run0", right_of(range(40)), recipe="tiny-2.toml")
    write_run(tmp_path / "run1", right_of(0), recipe="tiny-4.toml", sam=True)
    write_run(tmp_path / "run2", right_of(1, 2), recipe="tiny-3.toml", sam=True, rho=0.1)
    two_four, two_three, four_three = study(tmp_path).comparisons
    assert (two_four.first.name, two_four.second.name) == ("tiny-2", "tiny-4")
    # tiny-4 is right on 39 images more, and on none less; tiny-3 on all of the 40 but 1 and 2
    assert (two_four.wins, two_four.losses) == (0, 39) and two_four.difference == pytest.approx(-0.65)
    assert (two_three.wins, two_three.losses) == (0, 38) and two_three.verdict == two_four.verdict == EXCEEDS
    # 0 against 1, 2: 2 (1/2)^3 (1 + 3)
    assert (four_three.wins, four_three.losses, four_three.p, four_three.verdict) == (2, 1, 1.0, WITHIN)


def test_p_values_are_adjusted_for_all_comparisons(tmp_path):
    write_run(tmp_path / "run0", right_of(range(40)), recipe="tiny-2.toml")
    write_run(tmp_path / "run1", right_of(0), recipe="tiny-4.toml", sam=True)
    write_run(tmp_path / "run2", right_of(1, 2), recipe="tiny-3.toml", sam=True, rho=0.1)
    write_run(tmp_path / "run3", right_of(0, range(10, 16)), recipe="tiny-5.toml", sam=True, rho=0.2)
    _, four, _, five = study(tmp_path).settings
    between = study(tmp_path).comparisons
    # 6 images to none: p = 2 / 2^6 is the third largest of six, more than the noise by itself alone
    comparison, = (one for one in between if (one.first.name, one.second.name) == (four.name, five.name))
    assert (comparison.wins, comparison.losses, comparison.p) == (6, 0, 2 / 2**6)
    assert comparison.adjusted == pytest.approx(3 * 2 / 2**6) and comparison.verdict == WITHIN


def test_a_comparison_can_be_had_from_either_side(tmp_path):
    write_run(tmp_path / "run0", right_of(range(6)), recipe="a.toml")
    write_run(tmp_path / "run1", right_of(range(4, 8)), recipe="b.toml", sam=True)
    read = study(tmp_path)
    one, other = read.settings
    there, back = read.comparisons.between(one, other), read.comparisons.between(other, one)
    assert (there.first, there.wins, there.losses) == (one, 2, 4)
    assert there.difference == pytest.approx(-2 / 60)
    assert (back.first, back.wins, back.losses) == (other, 4, 2) and back.difference == pytest.approx(2 / 60)
    assert (there.p, there.adjusted, there.margin) == (back.p, back.adjusted, back.margin)


def test_settings_on_other_images_are_not_compared(tmp_path):
    write_run(tmp_path / "run0", right_of(0), recipe="a.toml")
    write_run(tmp_path / "run1", right_of(0), recipe="b.toml", sam=True,
              targets=[(i + 1) % 3 for i in range(60)])
    read = study(tmp_path)
    assert not read.comparisons and not sam_pairs(read.settings)
    with pytest.raises(KeyError, match="a and b were evaluated on different images"):
        read.comparisons.between(*read.settings)


def test_ranges_over_seeds_that_overlap_are_no_difference(tmp_path):
    for seed, (one, other) in enumerate([(range(0), range(20)), (range(21), range(21, 42))]):
        write_run(tmp_path / f"run{seed}", right_of(one), recipe="a.toml", seed=seed)
        write_run(tmp_path / f"run{seed + 2}", right_of(other), recipe="b.toml", seed=seed, lr=1.0)
    comparison, = study(tmp_path).comparisons
    # right in seeds: images 0 to 19 in 1 of 2 for each; 20 in 1 against 2; 21 to 41 in 2 against 1
    assert (comparison.wins, comparison.losses) == (21, 1) and comparison.adjusted < 0.001
    assert comparison.verdict == OVERLAP


@pytest.mark.parametrize("other, expected", [
    ({"sam": True, "rho": 0.1, "seed": 7, "output": "x"}, "sam off / on, rho 0.05 / 0.1"),
    ({"scratch": True, "weights": None}, "weights a.pt / none, scratch off / on"),
    ({"arch": "vit_base_patch16_224", "weights": "b.pt"},
     "arch test_vit / vit_base_patch16_224, weights a.pt / b.pt"),
    ({"lr": 1e-3, "ema": None}, "lr 1e-04 / 1e-03"),
    ({"lr": 1e-3, "sam": True},
     "sam off / on, lr 1e-04 / 1e-03: no single one can be named as the cause")])
def test_what_may_be_the_cause_of_a_difference(other, expected):
    settings = {"arch": "test_vit", "weights": "a.pt", "scratch": False, "sam": False, "rho": 0.05,
                "lr": 1e-4}
    assert causes(settings, {**settings, **other}) == expected


# Which settings are compared


def pair_names(folder):
    return [(pair.equal, pair.plain.runs[0].folder.name, pair.sam.runs[0].folder.name, pair.choice)
            for pair in sam_pairs(study(folder).settings)]


def test_sam_is_compared_at_equal_epochs_and_at_equal_passes(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, lr=2e-4, sync_perturbation=True)
    write_run(tmp_path / "adam", right_of(0))
    write_run(tmp_path / "long", right_of(0), train=(0.5,) * 8, curve=(0.5,) * 8)
    write_run(tmp_path / "longer", right_of(0), train=(0.5,) * 9, curve=(0.5,) * 9)
    write_run(tmp_path / "adamw", right_of(0), optimizer="adamw")
    write_run(tmp_path / "ema", right_of(0), ema=0.9)
    assert pair_names(tmp_path) == [("epochs", "adam", "sam", "only one"),
                                    ("passes", "long", "sam", "only one")]


def test_passes_within_five_percent_are_equal(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, step_passes=100)  # 800
    write_run(tmp_path / "a", right_of(0), train=(0.5,) * 8, curve=(0.5,) * 8, step_passes=105)  # 840
    write_run(tmp_path / "b", right_of(0), train=(0.5,) * 7, curve=(0.5,) * 7, step_passes=121)  # 847
    assert pair_names(tmp_path) == [("passes", "a", "sam", "only one")]


def test_the_learning_rate_is_chosen_by_the_held_out_part_and_never_by_val(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True)
    write_run(tmp_path / "good_on_val", right_of(), lr=2e-4, curve=(0.4, 0.6, 0.7, 0.8))
    write_run(tmp_path / "good_held_out", right_of(range(9)), lr=3e-4,
              curve=(0.4, 0.9, 0.7, 0.7))  # its best epoch
    assert pair_names(tmp_path) == [("epochs", "good_held_out", "sam", "highest held-out accuracy")]


def test_with_nothing_held_out_the_same_learning_rate_is_compared(tmp_path):
    write_run(tmp_path / "sam", right_of(0), sam=True, lr=3e-4, curve=None)
    write_run(tmp_path / "a", right_of(), lr=1e-4, curve=None)
    write_run(tmp_path / "b", right_of(range(9)), lr=3e-4, curve=None)
    assert pair_names(tmp_path) == [("epochs", "b", "sam", "same learning rate")]


def test_sizes_are_compared_where_nothing_else_differs(tmp_path):
    small = {"arch": "vit_small_patch16_224", "weights": "small.safetensors", "parameters": 22_000_000}
    write_run(tmp_path / "a", right_of(0), recipe="tiny.toml")
    write_run(tmp_path / "b", right_of(0), recipe="small.toml", **small)
    write_run(tmp_path / "c", right_of(0), recipe="small-sam.toml", sam=True, **small)
    pairs = size_pairs(study(tmp_path).settings)
    assert [[setting.name for setting in pair] for pair in pairs] == [["small", "tiny"]]


def test_sweeps_differ_in_the_learning_rate_alone(tmp_path):
    write_run(tmp_path / "run0", right_of(0), lr=3e-4, recipe="one.toml", curve=None)
    write_run(tmp_path / "run1", right_of(0), lr=1e-4, recipe="two.toml", curve=None)
    write_run(tmp_path / "run2", right_of(0), lr=1e-4, sam=True)
    write_run(tmp_path / "run3", right_of(range(6)), lr=3e-4, sam=True, curve=(0.5, 0.9, 0.8, 0.8))
    write_run(tmp_path / "run4", right_of(0), lr=3e-4, sam=True, rho=0.1)
    settings = study(tmp_path).settings
    assert set(differing(settings[0].settings, settings[4].settings)) == {"sam", "rho"}
    curves = sweep_curves(sweeps(settings))
    assert [(curve["name"], curve["rates"]) for curve in curves] == [
        ("vit_tiny_patch16_224, pretrained, adam, 4 epochs", [1e-4, 3e-4]),
        ("vit_tiny_patch16_224, pretrained, SAM(adam), 4 epochs", [1e-4, 3e-4])]
    assert [values.tolist() for values in curves[1]["val"]] == [[59 / 60], [0.9]]
    assert [values.tolist() for values in curves[1]["held_out"]] == [[0.8], [0.9]]
    assert curves[0]["held_out"] is None


def test_a_learning_rate_of_another_set_of_images_is_no_sweep(tmp_path):
    write_run(tmp_path / "run0", right_of(0), targets=[(i + 1) % 3 for i in range(60)])
    write_run(tmp_path / "run1", right_of(0), lr=2e-4)
    assert not sweeps(study(tmp_path).settings)
