"""docs/results.md and docs/results.csv are what p1_report.py makes of the runs in docs/runs."""

import csv
from pathlib import Path

import pytest

import p1_report

DOCS = Path(__file__).parents[2] / "docs"


def tables(text):
    """The tables of a page, each as its rows, {column: cell}."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            head, _, *rows = lines
            found.append([dict(zip(head, row, strict=True)) for row in rows])
            lines = []
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert p1_report.main([*sorted(map(str, (DOCS / "runs").iterdir())), "--output", str(out)]) == 0
    return out


def test_the_tables_are_what_the_report_says(report):
    reported = tables((report / "report.md").read_text())
    section = (DOCS / "results.md").read_text().split("## 3,680 photos")[1].split("\n## ")[0]
    ours = tables(section)
    assert ours
    for table in ours:
        assert any([{column: row.get(column) for column in table[0]} for row in rows] == table
                   for rows in reported), table


def test_a_row_a_run(report):
    kept, written = (list(csv.DictReader(file.read_text().splitlines()))
                     for file in (DOCS / "results.csv", report / "runs.csv"))
    assert len(kept) == len(written) == len(list((DOCS / "runs").iterdir()))
    for ours, theirs in zip(kept, written, strict=True):
        for column, value in theirs.items():
            try:  # another processor may round the last digit of a sum otherwise
                assert float(ours[column]) == pytest.approx(float(value), nan_ok=True)
            except ValueError:
                assert ours[column] == value
