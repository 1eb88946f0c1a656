"""pyproject.toml: nothing of ours is installed; its bounds, the pins, and what is too old or missing."""

import ast
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from common import cli, packages

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = [*ROOT.glob("p?_*.py"), ROOT / "report_page.py"]


def pins(file):
    """{package: version} of a requirements file."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_each_pin_has_a_lower_bound_that_is_not_above_it():
    bounds = packages.lower_bounds()
    assert bounds.pop("dev") == pins("tests/requirements.txt")
    pinned = pins("requirements.txt")
    assert sorted(name for extra in bounds.values() for name in extra) == sorted(pinned)
    for name, bound in [item for extra in bounds.values() for item in extra.items()]:
        assert re.fullmatch(r"\d+(\.\d+)*(?<!\.0)", bound), f"{name} {bound}: 1.0 must count as 1"
        assert packages._numbers(bound) <= packages._numbers(pinned[name]), name


def test_each_pin_says_what_it_carries():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(re.search(r" # .*\w", line) for line in lines if not line.startswith("#"))


def installed(monkeypatch, **versions):
    """Let metadata say that these packages are installed, and no others."""
    def version(package):
        if package not in versions:
            raise packages.metadata.PackageNotFoundError(package)
        return versions[package]

    packages.refuse_old.cache_clear()
    monkeypatch.setattr(packages.metadata, "version", version)


@pytest.fixture
def script():
    """The main of a script that reads its arguments and is done."""
    @cli.reports_errors
    def main(argv):
        cli.ArgumentParser("A script.").parse_args(argv)

    yield main
    packages.refuse_old.cache_clear()


@pytest.mark.parametrize(("versions", "lines"), [
    ({"timm": "1.0.19", "torch": "2.14.0"}, ["error: timm 1.0.19 is too old: BOUND or newer"]),
    ({"torch": "2.10.1", "timm": "1.1", "numpy": "3.0rc1"}, []),
    ({"torch": "2.6.0a0+ecf3bae40a.nv25.01", "torchvision": "0.21.0+cu124"}, []),
    ({"torchvision": "0.20.1+cu124", "Jinja2": "2.11.3", "pytest": "7.0"}, [
        "error: torchvision 0.20.1+cu124 is too old: BOUND or newer",
        "  Jinja2 2.11.3 is too old: BOUND or newer"]),
])
def test_packages_that_are_too_old_are_named_once_the_arguments_are_read(
        versions, lines, script, monkeypatch, capsys):
    installed(monkeypatch, **versions)
    bounds = {name: bound for extra in packages.lower_bounds().values() for name, bound in extra.items()}
    assert script([]) == (2 if lines else 0)
    expected = [line.replace("BOUND", bounds[line.split()[-8]]) for line in lines]
    assert capsys.readouterr().err.splitlines() == expected


def test_old_packages_do_not_keep_help_and_downloads_from_working(script, monkeypatch, capsys):
    installed(monkeypatch, timm="0.9")
    with pytest.raises(SystemExit, match="0"):
        script(["--help"])
    assert vars(cli.ArgumentParser("", stdlib_only=True).parse_args([])) == {}


@pytest.mark.parametrize(("name", "line"), [
    ("scipy", f"error: scipy is missing: pip install '{ROOT}'"),
    ("sacrebleu", f"error: sacrebleu is missing: pip install '{ROOT}[captions]'")])
def test_a_missing_package_is_one_line(name, line, capsys):
    @cli.reports_errors
    def main(argv):
        raise ModuleNotFoundError(name=name)

    assert main([]) == 2 and capsys.readouterr().err.splitlines() == [line]


def test_a_missing_part_of_a_package_is_no_missing_package():
    @cli.reports_errors
    def main(argv):
        import common.nothing  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="common.nothing"):
        main([])


def test_an_old_python_is_told_so_before_anything_that_it_cannot_read(monkeypatch, capsys):
    """`common` comes first in a script, which itself has the syntax of 3.8."""
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"])
    runpy.run_path(ROOT / "common" / "__init__.py")
    old = int(oldest[1]) - 1
    monkeypatch.setattr(sys, "version_info", (3, old, 14, "final", 0))
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(ROOT / "common" / "__init__.py")
    assert capsys.readouterr().err == f"error: Python 3.{old} is too old: 3.{old + 1} or newer\n"
    for path in SCRIPTS:
        tree = ast.parse(path.read_bytes(), feature_version=(3, 8))
        modules = [getattr(node, "module", None) or node.names[0].name for node in tree.body
                   if isinstance(node, (ast.Import, ast.ImportFrom))]
        first = next(i for i, name in enumerate(modules) if name.startswith("common."))
        assert set(modules[:first]) <= set(sys.stdlib_module_names) - {"tomllib"}, path


def test_no_package_or_module_is_installed():
    assert PROJECT["tool"]["setuptools"] == {"packages": [], "py-modules": []}
    assert not [name for name in ("setup.py", "setup.cfg", "MANIFEST.in") if (ROOT / name).exists()]


def test_ruff_knows_which_packages_are_ours():
    names = PROJECT["tool"]["ruff"]["lint"]["isort"]["known-first-party"]
    assert set(names) == {"sam", "tests", *(path.parent.name for path in ROOT.glob("*/__init__.py"))}
