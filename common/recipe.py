"""Recipes: flags of a script in a TOML file, one a line, under their names without the dashes in front."""

import argparse
import difflib
import tomllib
from pathlib import Path

from common.errors import BadInput

COMMAND_FLAGS = {"data", "output", "recipe", "resume", "help"}  # a recipe says how to train, not on what


def parse_with_recipe(parser, argv):
    """The arguments of `argv`, on top of those of its `--recipe`, if any. BadInput for no such file, or two.

    A flag of `argv` takes the place of the recipe's, and of one of the recipe's that excludes it.
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--recipe", type=Path, action="append", default=[])
    try:
        recipes = reader.parse_known_args(argv)[0].recipe
    except argparse.ArgumentError:  # a --recipe without a file: the parser itself says so
        recipes = []
    if len(recipes) > 1:
        raise BadInput(f"--recipe {recipes[0]} and {recipes[1]}: name one, and pass what differs as flags")
    return parser.parse_args([*(_arguments(parser, recipes[0], argv) if recipes else []), *argv])


def _arguments(parser, path, argv):
    """The recipe's flags as arguments, without those that `argv` excludes."""
    actions = {option: action for action in parser._actions for option in action.option_strings}
    given = {actions.get(argument.partition("=")[0]) for argument in argv}
    excluded = {action for group in parser._mutually_exclusive_groups for action in group._group_actions
                if given & set(group._group_actions)}
    try:
        recipe = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise BadInput(f"--recipe {path} does not exist: name a file such as those in recipes/") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from error
    arguments = []
    for key, value in recipe.items():
        action = actions.get(f"--{key}")
        if action is None or key in COMMAND_FLAGS:
            names = {option[2:] for option in actions} - COMMAND_FLAGS
            near = difflib.get_close_matches(key, names, n=1)
            hint = ("it belongs to the command" if action else
                    f"did you mean {near[0]}?" if near else f"{parser.prog} --help lists them")
            raise BadInput(f"{path}: a recipe has no {key}: {hint}")
        argument = _as_arguments(action, key, value, path)
        if action not in excluded:
            arguments += argument
    return arguments


def _as_arguments(action, key, value, path):
    """A line of a recipe as command-line arguments. BadInput for a value that the flag does not take."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise BadInput(f"{path}: {key} is true or false, not {value!r}")
        if value:
            return [f"--{key}"]
        return [f"--no-{key}"] if isinstance(action, argparse.BooleanOptionalAction) else []
    if isinstance(value, (bool, list, dict)):
        raise BadInput(f"{path}: {key} is a single value, not {value!r}")
    if action.type is Path:
        if not isinstance(value, str):
            raise BadInput(f"{path}: {key} is the name of a file, not {value!r}")
        value = path.parent / value  # beside the recipe, whatever the working directory
    try:
        parsed = action.type(str(value)) if action.type else value
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise BadInput(f"{path}: {key}: {error}") from error
    if action.choices and parsed not in action.choices:
        raise BadInput(f"{path}: {key} is one of {', '.join(action.choices)}, not {value}")
    return [f"--{key}={value}"]
