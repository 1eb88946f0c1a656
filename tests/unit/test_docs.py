"""README and docs: links that lead somewhere, files that are there, pictures that load."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LARGEST = 400_000  # bytes of a picture

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What GitHub calls the headings of a page: lower case, spaces as hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_every_link_resolves(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


@by_name
def test_shell_lines_name_files_that_exist(page):
    for command in re.findall(r"^(?:bash|sbatch|pip|source) .*$", page.read_text(), re.MULTILINE):
        words = shlex.split(command, comments=True)
        for word in words:
            if re.search(r"\.(sh|txt|py)$", word) and not word.startswith("-"):
                assert (ROOT / word).is_file(), command
    for module in re.findall(r"python -m ((?:benchmarks|datasets|tests)[\w.]*\w)", page.read_text()):
        path = ROOT / module.replace(".", "/")
        assert page.name == "changes.md" or path.is_dir() or path.with_suffix(".py").is_file(), module
    for file in re.findall(r"\b(?:examples|recipes|tests|weights)/[\w/.-]+\.\w+", page.read_text()):
        assert (ROOT / file).is_file(), f"{page.name} names {file}"


@pytest.mark.parametrize("picture", sorted([*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.jpg")]),
                         ids=lambda picture: picture.name)
def test_pictures_are_small_and_shown(picture):
    assert picture.stat().st_size <= LARGEST
    assert any(f"{picture.name})" in page.read_text() for page in PAGES)
