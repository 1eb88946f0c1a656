"""What is parsed, fed with anything: it is read as it is meant, or the error says that the input is bad."""

import csv
import json
import os
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import p1_eval
import p1_train
from common.errors import BadInput
from common.recipe import parse_with_recipe
from datasets import captions, images
from models.tokenizer import Tokenizer
from models.wordpieces import joined, words_of
from tests.helpers.fuzzing import examples

# names as the system gives them: anything but `/` and NUL, bytes that are no UTF-8 as surrogates
file_names = st.binary(min_size=1, max_size=12).map(
    lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0",
                                                              b"."))).filter(lambda name: name not in (".",
                                                                                                       ".."))


def only_bad_input(parse):
    """The result, or None where it raises BadInput and nothing else."""
    try:
        return parse()
    except BadInput as error:
        assert str(error)


# File names and labels


@examples(60)
@given(label=st.text(string.ascii_letters + string.digits + "_ .-ß猫", min_size=1),
       number=st.text(string.digits, min_size=1, max_size=6), ending=st.sampled_from([".jpg", ".jpeg", ".PNG",
                                                                                      ""]))
@example("a.b", "1", "")  # without an ending, the label may not hold a dot
def test_a_label_comes_back(label, number, ending):
    if ending or "." not in label:
        assert images.label_of(f"{label}_{number}{ending}") == label
    assert images.label_of(f"{label}/{number}{ending}") == label


@examples(60)
@given(st.lists(file_names, min_size=1, max_size=6, unique=True))
def test_any_names_are_listed_once_and_labelled_or_not(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        (folder / name).write_bytes(b"x")
    expected = {name for name in names if not name.startswith(".") and name.lower() not in images.LITTER}
    listed = only_bad_input(lambda: images.list_files(folder)) or []
    assert set(listed) == expected and len(listed) == len(expected)
    for name in listed:
        label = images.label_of(name)
        assert label is None or (label and name.startswith(f"{label}_"))


@examples(60)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=8))
def test_labels_have_an_order_whatever_they_are(labels):
    found = only_bad_input(lambda: images.in_label_order(labels))
    assert found is None or (sorted(found) == sorted(set(labels))
                             and found == images.in_label_order(labels[::-1]))


@examples(60)
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)),
       labels=st.lists(st.one_of(st.integers(0, 5).map(str), st.text(max_size=3)), min_size=1, max_size=4,
                       unique=True))
def test_a_classes_file_gives_each_label_a_name_or_is_refused(tmp_path, content, labels):
    (tmp_path / "classes.txt").write_bytes(content)
    names = only_bad_input(lambda: images.class_names(labels, tmp_path / "classes.txt"))
    assert names is None or len(names) == len(labels)


# Predictions


@examples(60)
@given(st.dictionaries(file_names, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
                       max_size=5))
@example({"\r": "", "a\rb,.jpg": "Samoyed"})
def test_predictions_survive_the_csv(tmp_path, answers):
    text = p1_eval.as_csv(list(answers), list(answers.values()))
    p1_eval.write_text(tmp_path / "pred.csv", text)
    with open(tmp_path / "pred.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["filename", "label"] and [tuple(row) for row in rows] == list(answers.items())


# Recipes


VALUES = st.recursive(st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
                      lambda inner: st.lists(inner, max_size=2), max_leaves=3)
FLAGS = [option[2:] for action in p1_train.get_args_parser()._actions for option in action.option_strings]


def parse(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    try:
        return only_bad_input(lambda: parse_with_recipe(
            p1_train.get_args_parser(), ["--data", "d", "--output", "o", "--recipe",
                                         str(tmp_path / "recipe.toml")]))
    except SystemExit as exit:  # what argparse itself refuses
        assert exit.code == 2


@examples(60)
@given(key=st.sampled_from(FLAGS), value=VALUES)
@example("weights", 0)
def test_any_value_of_any_flag_in_a_recipe(tmp_path, capsys, key, value):
    written = str(value) if isinstance(value,
                                       float) else json.dumps(value)  # JSON's strings and lists are TOML's
    args = parse(tmp_path, f"{key} = {written}\n".encode("utf-8", "surrogatepass"))
    said = capsys.readouterr().err
    assert said.count("\n") == (1 if said else 0)
    if args and not isinstance(value, bool):
        found = getattr(args, key.removeprefix("no-").replace("-", "_"))
        assert str(found).endswith(str(value)) or found == type(found)(value), (key, value, found)


@examples(60)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8",
                                                                                           "surrogatepass"))))
def test_any_bytes_as_a_recipe(tmp_path, content):
    parse(tmp_path, content)


# Vocabularies and captions


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@examples(60)
@given(content=st.one_of(st.binary(max_size=40), st.lists(st.text(max_size=4), max_size=6).map(
    lambda tokens: "\n".join([*SPECIAL, *tokens]).encode("utf-8", "surrogatepass"))),
    text=st.text(max_size=20))
def test_any_bytes_as_a_vocabulary_and_any_text_as_a_caption(tmp_path, content, text):
    (tmp_path / "vocab.txt").write_bytes(content)
    tokenizer = only_bad_input(lambda: Tokenizer.from_file(tmp_path / "vocab.txt"))
    if tokenizer:
        ids = tokenizer.caption(text, 12)
        assert ids[-1] == tokenizer.end and len(ids) <= 12 and all(0 <= i < len(tokenizer.vocabulary)
                                                                   for i in ids)
        tokens = tokenizer.tokens(ids)
        assert sorted(i for word in words_of(tokens) for i in word) == list(range(len(tokens)))
        assert all(joined([tokens[i] for i in word]) for word in words_of(tokens))
        tokenizer.text(ids), tokenizer.words(text)


KEYS = st.sampled_from(["images", "annotations", "id", "image_id", "file_name", "caption"])
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.floats()),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner,
                                                                                         max_size=4)),
                                                                                         max_leaves=12)
IMAGE = st.fixed_dictionaries({"id": st.integers(0, 2), "file_name": st.one_of(st.just("a.jpg"), JSON)})
ANNOTATION = st.fixed_dictionaries({"image_id": st.integers(0, 2), "caption": st.one_of(st.text(max_size=8),
                                                                                        JSON)})
COCO = st.fixed_dictionaries({"images": st.lists(IMAGE, max_size=3), "annotations": st.lists(ANNOTATION,
                                                                                             max_size=3)})


@examples(60)
@given(st.one_of(JSON, COCO))
def test_any_json_as_captions(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    (folder / "train" / "a.jpg").write_bytes(b"x")
    (folder / "annotations" / "captions_train.json").write_text(json.dumps(content))
    found = only_bad_input(lambda: captions.read_captions(folder, "train"))
    if found:
        assert all(texts and all(isinstance(text, str) and text for text in texts)
                   for texts in found.captions)


@pytest.mark.parametrize("text", ["[" * 100000, "{" * 100000, '{"images": ' * 50000])
def test_json_that_is_nested_too_deep(tmp_path, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations" / "captions_train.json").write_text(text)
    with pytest.raises(BadInput):
        captions.read_captions(tmp_path, "train")
