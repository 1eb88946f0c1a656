import re
import shlex
from pathlib import Path

import pytest

import p1_train
from common.errors import BadInput
from common.recipe import parse_with_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NEEDED = ["--data", "d", "--output", "o"]


def parsed(*argv):
    return vars(parse_with_recipe(p1_train.get_args_parser(), [*NEEDED, *map(str, argv)]))


@pytest.fixture
def recipe(tmp_path):
    def written(text):
        (tmp_path / "r.toml").write_text(text, encoding="utf-8")
        return tmp_path / "r.toml"

    return written


def test_a_recipe_says_what_the_same_flags_say(recipe):
    file = recipe('arch = "test_vit"\nsam = true\nlr = 1e-3\nepochs = 7\nscratch = true\nlayer-decay = 0.7\n')
    flags = shlex.split("--arch test_vit --sam --lr 1e-3 --epochs 7 --scratch --layer-decay 0.7")
    assert {**parsed("--recipe", file), "recipe": None} == parsed(*flags)
    assert parsed(f"--recipe={file}") == parsed("--recipe", file)


def test_a_recipe_is_read_whole_or_not_taken(recipe, capsys):
    file = recipe("\ufefflr = 1e-3")
    assert parsed("--recipe", file)["lr"] == 1e-3, "a byte order mark is not part of it"
    with pytest.raises(SystemExit):
        parsed("--rec", file)
    assert "--rec" in capsys.readouterr().err
    with pytest.raises(BadInput, match="a.toml and .*r.toml: name one"):
        parsed("--recipe", "a.toml", f"--recipe={file}")


@pytest.mark.parametrize("text, flags, expected", [
    ("lr = 1e-3\nsam = true", "--lr 5e-4 --no-sam", {"lr": 5e-4, "sam": False}),
    ("lr = 1e-3\nsam = false", "--lr=5e-4 --sam", {"lr": 5e-4, "sam": True}),
    ("scratch = true", "--weights w.pt", {"scratch": False, "weights": Path("w.pt")}),
    ('weights = "w.pt"', "--scratch", {"scratch": True, "weights": None}),
    ('weights = "w.pt"', "--weights=v.pt", {"weights": Path("v.pt")}),
    ("scratch = false", "", {"scratch": False}),
])
def test_flags_override_the_recipe(recipe, text, flags, expected):
    found = parsed("--recipe", recipe(text), *flags.split())
    assert {name: found[name] for name in expected} == expected


def test_a_path_is_one_beside_the_recipe(recipe):
    file = recipe('weights = "../w.pt"')
    assert parsed("--recipe", file)["weights"] == file.parent / ".." / "w.pt"


@pytest.mark.parametrize("text, words", [
    ("ler = 1", "a recipe has no ler: did you mean"), ("label_smoothing = 0.1",
                                                       "did you mean label-smoothing?"),
    ('data = "d"', "no data: it belongs to the command"), ("resume = true", "it belongs to the command"),
    ("zzz = 1", "--help lists them"), ("[optimizer]\nlr = 1", "a single value"),
    ("lr = [1]", "a single value"),
    ("lr = -1", "lr: -1 is not at least 0"), ("epochs = 1.5", "epochs: invalid literal"),
    ("sam = 1", "sam is true or false"),
    ("epochs = true", "a single value"), ('optimizer = "adagrad"', "is one of adam, adamw, sgd"),
    ("lr = ", "is not TOML"),
])
def test_what_is_wrong_with_a_recipe_is_said_by_name(recipe, text, words):
    file = recipe(text)
    with pytest.raises(BadInput, match=re.escape(words)) as raised:
        parsed("--recipe", file)
    assert str(raised.value).startswith(str(file))


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    with pytest.raises(BadInput, match="none.toml does not exist"):
        parsed("--recipe", tmp_path / "none.toml")
    with pytest.raises(SystemExit):
        parsed("--recipe")
    assert "--recipe" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(RECIPES.iterdir()), ids=lambda file: file.name)
def test_each_recipe_is_one_that_its_command_takes(file):
    """All are documented in the same way; what they say of results is not for a test to prove."""
    text = file.read_text()
    found = re.findall(r"^#     python p1_train.py (.*)$", text, re.MULTILINE)
    assert len(found) == 1 and f"--recipe recipes/{file.name} " in found[0]
    argv = [str(RECIPES.parent / word) if word.startswith("recipes/") else word
            for word in shlex.split(found[0])]
    args = parse_with_recipe(p1_train.get_args_parser(), argv)
    assert args.weights is None or args.weights.exists()


def test_model4_is_what_happens_without_a_recipe():
    def settings(*argv):
        args = parsed(*argv)
        return {**args, "sam": args["optimizer"] is None if args["sam"] is None else args["sam"],
                "optimizer": args["optimizer"] or "adam", "recipe": None}

    assert settings("--recipe", RECIPES / "model4.toml") == settings()
