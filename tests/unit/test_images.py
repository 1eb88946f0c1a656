import random
import unicodedata

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import BadInput
from datasets import images, transforms
from tests.helpers.photos import PREPROCESSING, save

# Folders and labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, label", [
    ("26_5064.jpg", "26"), ("great_pyrenees_12.jpg", "great_pyrenees"), ("a.b_3.jpg", "a.b"),
    ("Ragdoll/x.jpg", "Ragdoll"),
    ("Ragdoll/7_1.jpg", "Ragdoll"), ("photo.jpg", None), ("_12.jpg", None), ("12_.jpg", None), ("7_1", "7"),
])
def test_label_of(name, label):
    assert images.label_of(name) == label


def test_labels_sort_by_value_if_all_are_numbers():
    assert images.in_label_order(["10", "9", "100", "9"]) == ["9", "10", "100"]
    assert images.in_label_order(["10", "9", "b"]) == ["10", "9", "b"]
    with pytest.raises(BadInput, match="01 and 1|1 and 01"):
        images.in_label_order(["1", "2", "01"])


@pytest.mark.parametrize("layout", ["{label}_{i}.png", "{label}/{i}.png"])
def test_both_layouts_read_alike(tmp_path, layout):
    for label in ("3", "12"):
        for i in range(2):
            save(tmp_path / "train" / layout.format(label=label, i=i))
    (tmp_path / "train" / ".DS_Store").write_bytes(b"")
    (tmp_path / "train" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("three\ntwelve\n")
    folder = images.read_training_folder(tmp_path / "train", tmp_path / "classes.txt")
    assert folder.labels == ["3", "12"] and folder.class_names == ["three", "twelve"]
    assert folder.names == sorted(layout.format(label=label, i=i) for label in ("3", "12") for i in range(2))
    assert [folder.labels[t] for t in folder.targets] == [images.label_of(name) for name in folder.names]


def test_what_desktops_and_storages_leave_behind_and_what_a_call_writes_are_no_images(tmp_path):
    for name in ("0/a.png", "0/.a.png", "1/Thumbs.db", "1/b.png", "__MACOSX/0/._a.png",
                 "@eaDir/0/a.png/thumb.jpg", "1/@eaDir/b.png/thumb.jpg", "$RECYCLE.BIN/S-1-5/x.png",
                 "lost+found/x", "out/deep/x.png", "1/pred.csv"):
        save(tmp_path / name, format="PNG")
    written = [tmp_path / "out", tmp_path / "0" / ".." / "1" / "pred.csv"]
    assert images.list_files(tmp_path, written) == ["0/a.png", "1/b.png"]
    with pytest.raises(BadInput, match="out/deep is nested too deep"):
        images.list_files(tmp_path)


def test_class_names_for_labels_with_gaps(tmp_path):
    file = tmp_path / "classes.txt"
    assert images.class_names(["cat", "dog"], file) == ["cat", "dog"]
    file.write_text("zero\none\ntwo\nthree\n")
    assert images.class_names(["0", "2", "3"], file) == ["zero", "two", "three"]
    assert images.class_names(["5", "6", "8", "9"], file) == ["zero", "one", "two", "three"]
    with pytest.raises(BadInput, match="4 names for 3 classes"):
        images.class_names(["5", "6", "8"], file)


BREEDS = ["Abyssinian", "Bengal", "american_bulldog"]  # in label order: capital letters come first
KOETER = unicodedata.normalize("NFD", "Köter")


@pytest.mark.parametrize("labels, text", [
    (BREEDS, "Abyssinian\namerican_bulldog\nBengal\n"),  # Oxford's order
    (BREEDS, "\ufeffBengal\r\nAbyssinian\r\namerican_bulldog\r\n\r\n"),
    (["Köter", "Mops"], f"Mops\n{KOETER}\n"), ([KOETER, "Mops"], "Mops\nKöter\n"),
    (["0", "1", "2", "10"], "0\n1\n10\n2\n"),  # what ls makes of numbers
])
def test_names_that_are_the_labels_may_have_any_order(tmp_path, capsys, labels, text):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert images.class_names(labels, tmp_path / "classes.txt") == labels
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("labels, text, expected, said", [
    (BREEDS, "Abessinier\nBengale\nBulldogge\n", ["Abessinier", "Bengale", "Bulldogge"],
     "label order: Abyssinian is Abessinier, Bengal is Bengale, american_bulldog is Bulldogge\n"),
    (["2", "3", "5", "7"], "a\nb\nc\nd\ne\nf\ng\nh", ["c", "d", "f", "h"], "2 is c, 3 is d, 5 is f, ...\n"),
    (["1", "2", "3"], "\ufeffa\nb\nc\n\n", ["a", "b", "c"], ""),  # an empty line is not a name
    (["0", "1", "2"], "crane\ncrane\nowl\n", ["crane", "crane", "owl"], "several classes crane"),
])
def test_names_that_are_not_the_labels_follow_their_order_which_is_shown(tmp_path, capsys, labels, text,
                                                                         expected, said):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert images.class_names(labels, tmp_path / "classes.txt") == expected
    notes = capsys.readouterr().err
    assert said in notes and bool(said) == bool(notes)


@pytest.mark.parametrize("labels, names, message, details", [
    (BREEDS, ["Abyssinian", "american bulldog", "Bengal"], "has labels and other names",
     ["'american bulldog' is no label, or twice there", "'american_bulldog' is a label without a line"]),
    (BREEDS, [*BREEDS, "Persian"], "has labels and other names", ["'Persian' is no label, or twice there"]),
    (BREEDS, ["Bengal", "Bengal", "Abyssinian"], "has labels and other names",
     ["'Bengal' is no label, or twice there", "'american_bulldog' is a label without a line"]),
    ([str(i) for i in range(1, 11)], [f"breed {i}" for i in range(37)],
     r"37 names for 10 classes \(1 to 10\)", []),
    (BREEDS, ["a", "b"], "2 names for 3 classes: give each a line", []),
])
def test_names_that_fit_the_labels_in_part_are_refused(tmp_path, labels, names, message, details):
    (tmp_path / "classes.txt").write_text("\n".join(names))
    with pytest.raises(BadInput, match=message) as error:
        images.class_names(labels, tmp_path / "classes.txt")
    assert list(error.value.details) == details


def test_labels_are_compared_in_one_form_of_unicode(tmp_path):
    """macOS writes an umlaut as a letter and two dots, Linux what was typed: one class, under either name."""
    for name in ("Kuvasz_1.png", "Mops_1.png", "Köter_1.png", f"{KOETER}_2.png"):
        save(tmp_path / "both" / name)
        save(tmp_path / "one" / unicodedata.normalize("NFD", name))
    folder = images.read_training_folder(tmp_path / "both", tmp_path / "classes.txt")
    assert folder.labels == ["Kuvasz", "Köter", "Mops"]
    assert [folder.labels[target] for target in folder.targets] == ["Köter", "Kuvasz", "Köter", "Mops"]
    folder = images.read_training_folder(tmp_path / "one", tmp_path / "classes.txt")
    assert folder.labels == [KOETER, "Kuvasz", "Mops"], "as it is written, in the order that it had"
    for name in ("Köter_3.png", f"{KOETER}_3.png", f"{KOETER}/1.png"):
        assert images.known_label(name, {"Köter": "found"}) == "found"


@pytest.mark.parametrize("name, folder, expected", [
    ("1_0.jpg", "", "one"), ("0/1_0.jpg", "", "zero"), ("0/1_0.jpg", "1", "zero"),
    ("1_0.jpg", "0", "zero"), ("1_0.jpg", "val", "one"),
    ("new/1_0.jpg", "", None), ("photo.jpg", "", None), ("photo.jpg", "1", "one")])
def test_the_folder_says_the_class_before_the_name_does(name, folder, expected):
    assert images.known_label(name, {"0": "zero", "1": "one"}, folder) == expected


def test_classes_that_vanish_or_look_alike_are_named(tmp_path, capsys):
    for name in ("Cat/1.png", "cat/1.png", "dog/1.png", "bird/1.png", "bird/2.png"):
        save(tmp_path / name)
    for empty in ("emu", "yak"):
        (tmp_path / empty).mkdir()
    (tmp_path / "yak" / ".DS_Store").write_bytes(b"")
    (tmp_path / "dog" / "1.png").write_bytes(b"")
    (tmp_path / "bird" / "2.png").write_bytes(b"")
    folder = images.read_training_folder(tmp_path, tmp_path / "classes.txt", skip_bad=True)
    said = capsys.readouterr().err
    assert folder.labels == ["Cat", "bird", "cat"]
    assert f"{tmp_path} has subfolders without images: emu, yak\n" in said
    assert f"{tmp_path} has no good file left of the classes dog\n" in said
    assert "classes cat that differ in upper and lower case alone" in said


def test_all_bad_files_are_listed_before_the_work(tmp_path, capsys):
    for name in ("0_1.png", "1_1.png", "nolabel.png"):
        save(tmp_path / name)
    (tmp_path / "0_2.png").write_bytes(b"")
    with pytest.raises(BadInput, match="2 files of 4") as caught:
        images.read_training_folder(tmp_path, tmp_path / "classes.txt")
    assert [line.split(":")[0] for line in caught.value.details] == ["0_2.png", "nolabel.png"]
    folder = images.read_training_folder(tmp_path, tmp_path / "classes.txt", skip_bad=True)
    assert folder.names == ["0_1.png", "1_1.png"]
    assert "left out 2 bad files: 0_2.png, nolabel.png" in capsys.readouterr().err


def test_unusable_folders(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        images.list_files(tmp_path / "missing")
    with pytest.raises(BadInput, match="holds no images"):
        images.list_files(tmp_path)
    save(tmp_path / "mixed" / "0_1.png")
    save(tmp_path / "mixed" / "1" / "a.png")
    with pytest.raises(BadInput, match="mixes two layouts"):
        images.read_training_folder(tmp_path / "mixed", tmp_path / "classes.txt")
    save(tmp_path / "deep" / "a" / "b" / "c.png")
    with pytest.raises(BadInput, match="nested too deep"):
        images.list_files(tmp_path / "deep")
    save(tmp_path / "single" / "0_1.png")
    with pytest.raises(BadInput, match="one class, 0: training needs two"):
        images.read_training_folder(tmp_path / "single", tmp_path / "classes.txt")


@pytest.mark.parametrize("sizes", [[10, 10, 10], [3, 40, 17, 5], [1, 1, 30]])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_split_is_stratified_and_seeded(sizes, fraction):
    targets = [target for target, size in enumerate(sizes) for _ in range(size)]
    fit, held_out = images.stratified_holdout(targets, fraction, seed=3)
    assert sorted(fit + held_out) == list(range(len(targets)))
    for target, size in enumerate(sizes):
        count = sum(targets[i] == target for i in held_out)
        assert abs(count - size * fraction) < 1 and count < size
    assert (fit, held_out) == images.stratified_holdout(targets, fraction, seed=3)
    assert held_out != images.stratified_holdout(targets, fraction, seed=4)[1]


def test_the_split_holds_out_at_least_one_image_and_nothing_for_zero():
    assert len(images.stratified_holdout([0, 0, 1, 1], 0.1, seed=0)[1]) == 1
    assert images.stratified_holdout([0, 1], 0, seed=0) == ([0, 1], [])
    with pytest.raises(BadInput, match="--holdout"):
        images.stratified_holdout([0, 1], 0.5, seed=0)


# The Dataset ------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_index_alone(shapes):
    names = images.list_files(shapes / "train")
    dataset = images.ImageDataset(shapes / "train", names, [0] * len(names),
                                  transforms.training_transform(PREPROCESSING), seed=5)
    keys = [(epoch, index) for epoch in (0, 1) for index in (0, 1, 2, 3)]
    torch.manual_seed(1)
    one = [dataset[key][0] for key in keys]
    torch.manual_seed(2)
    random.seed(2)
    other = [dataset[key][0] for key in reversed(keys)][::-1]
    loaded = list(DataLoader(dataset, batch_sampler=[keys], num_workers=2))[0][0]
    assert torch.equal(torch.stack(one), torch.stack(other)) and torch.equal(torch.stack(one), loaded)
    assert not torch.equal(one[0], one[4]), "another epoch is another crop"
    dataset.seed = 6
    assert not torch.equal(one[0], dataset[keys[0]][0]), "another seed is another crop"


def test_augmentation_leaves_the_global_streams_alone():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with images.random_streams(1, 2, 3):
        torch.rand(5), random.random(), np.random.rand(2)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
