"""pyproject.toml: nothing of ours is installed, and its bounds are the pins that the tests run with."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(lines, sign):
    """{package: version} of lines such as torch==2.12.1, with this sign and no other."""
    matches = [re.fullmatch(rf"([\w-]+){sign}([\w.]+)", line) for line in lines]
    assert all(matches), lines
    return {match[1]: match[2] for match in matches}


@pytest.mark.parametrize(("file", "extras"), [("requirements.txt", ["captions", "page"]),
                                              ("tests/requirements.txt", ["test"])])
def test_lower_bounds_are_the_pins(file, extras):
    pins = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    bounds = [] if "test" in extras else [*PROJECT["project"]["dependencies"]]
    for extra in extras:
        bounds += PROJECT["project"]["optional-dependencies"][extra]
    assert requirements(bounds, ">=") == requirements(pins, "==")


def test_no_package_or_module_is_installed():
    assert PROJECT["tool"]["setuptools"] == {"packages": [], "py-modules": []}
    assert not [name for name in ("setup.py", "setup.cfg", "MANIFEST.in") if (ROOT / name).exists()]


def test_ruff_knows_which_packages_are_ours():
    names = PROJECT["tool"]["ruff"]["lint"]["isort"]["known-first-party"]
    assert set(names) == {"sam", "tests", *(path.parent.name for path in ROOT.glob("*/__init__.py"))}
