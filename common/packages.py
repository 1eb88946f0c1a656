"""The packages that pyproject.toml asks for: which are too old, and how to install a missing one."""

import functools
import re
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from common.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def lower_bounds():
    """{package: lower bound} of each extra by its name; under "" of what is always needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: dict(line.split(">=") for line in lines) for extra, lines in groups.items()}


@functools.cache
def refuse_old():
    """Raise BadInput for packages older than their bounds, those for developers aside. One may be missing."""
    old = []
    for package, bound in [item for extra, bounds in lower_bounds().items() if extra != "dev"
                           for item in bounds.items()]:
        with suppress(metadata.PackageNotFoundError):
            installed = metadata.version(package)
            if _numbers(installed) < _numbers(bound):
                old.append(f"{package} {installed} is too old: {bound} or newer")
    if old:
        raise BadInput(old[0], old[1:])


def _numbers(version):
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def missing(module):
    """What to say of a module that is missing: the extra, if it belongs to one, is named."""
    extra = next((extra for extra, bounds in lower_bounds().items()
                  if extra and module in map(str.lower, bounds)), None)
    return f"{module} is missing: pip install '{ROOT}{f'[{extra}]' if extra else ''}'"
