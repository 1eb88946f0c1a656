"""Names of settings, of sets of images and of files, made of what tells them apart."""

import json
import os
import re
from itertools import chain, count
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from engine.flags import HARMLESS, optimizer_name

# What may differ between the runs of one setting.
BETWEEN_SEEDS = HARMLESS | {"seed", "deterministic"}


def given(settings):
    """The settings that tell runs apart: a flag that an older version did not have counts as not given."""
    return {name: value for name, value in settings.items()
            if value is not None and value is not False and name not in BETWEEN_SEEDS}


def key(settings, without=()):
    """What is equal for settings that are the same but for those named in `without`, a text."""
    values = given(settings)
    return json.dumps({name: values[name] for name in values.keys() - set(without)}, sort_keys=True)


def describe(settings):
    """What is trained, from what, and how: `vit_tiny_patch16_224, pretrained, SAM(adam)`."""
    start = "from scratch" if settings.get("scratch") else "pretrained"
    return f"{settings['arch']}, {start}, {optimizer_name(settings)}"


def distinct_names(names, settings, ignored=frozenset()):
    """The names, with the values of the settings in which namesakes differ, such as `tiny-4, lr 1e-04`."""
    distinct = []
    for name, values in zip(names, settings):
        namesakes = [other for its_name, other in zip(names, settings) if its_name == name]
        differing = [key for key in dict.fromkeys(key for one in (values, *namesakes) for key in one)
                     if any(other.get(key) != values.get(key) for other in namesakes)]
        distinct.append(", ".join([name, *(f"{key.replace('_', ' ')} {as_text(values.get(key))}"
                                           for key in differing if key not in BETWEEN_SEEDS | ignored)]))
    return distinct


def as_text(value):
    """A setting's value; different values have different texts."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return np.format_float_scientific(value, trim="-", exp_digits=2)
    return "none" if value is None else str(value)


def short_names(groups):
    """A name for each group of runs: its recipe, or else its run folders, or else letters for all."""
    stems = [Path(runs[0].settings.get("recipe") or "").stem for runs in groups]
    folders = [os.path.commonprefix([run.folder.name for run in runs]).rstrip("-_. ") or runs[0].folder.name
               for runs in groups]
    names = [stem if stem and stems.count(stem) == 1 else folder for stem, folder in zip(stems, folders)]
    if len(set(names)) == len(names):
        return names
    return [ascii_uppercase[i % 26] + str(i // 26 or "") for i in range(len(names))]


def slugs(names):
    """Distinct parts of file names: the letters, digits, `_` and `-` of names."""
    parts = [re.sub(r"[^\w-]+", "_", name).strip("_")[:80] or "setting" for name in names]
    return numbered(parts, "{}__{}")


def numbered(names, form):
    """The names, those that were there before with a number."""
    distinct = []
    for name in names:
        candidates = chain([name], (form.format(name, number) for number in count(2)))
        distinct.append(next(candidate for candidate in candidates if candidate not in distinct))
    return distinct
