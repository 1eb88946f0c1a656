import contextlib
import importlib
import io
import json

import pytest

from benchmarks import __main__ as table
from benchmarks import caption_decoding, photos, sam_step, starting
from benchmarks import rows as benchmark_rows
from benchmarks.rows import Row, in_own_process, in_turn, ratio


def test_a_ratio_is_the_median_over_the_turns_and_is_met_or_not():
    row = ratio("fast", [2.0, 9.0, 3.0], [1.0, 2.0, 2.0], ">=", 2, "images/s")
    assert row.values == [2, 4.5, 1.5] and row.value == 2 and row.met
    assert (row.ours, row.other) == (3, 2)
    assert ratio("short", [2.0], [9.0], ">=", 5, "s", inverted=True).values == [4.5]
    assert not ratio("short", [2.0], [9.0], ">=", 5, "s", inverted=True).met
    assert Row("wait", [0.3, 0.5, 0.4], "<=", 0.4).met and not Row("wait", [0.5], "<=", 0.4).met
    assert "NO" in str(Row("wait", [0.5], "<=", 0.4)) and "yes" in str(row)


def test_turns_alternate():
    calls = []
    assert in_turn(2, a=lambda: calls.append("a") or 1, b=lambda: calls.append("b") or 2) == {"a": [1, 1], "b": [2, 2]}
    assert calls == ["a", "b", "a", "b"]


def test_a_way_in_a_process_of_its_own_says_what_went_wrong():
    with pytest.raises(RuntimeError, match="No module named benchmarks.nothing"):
        in_own_process("benchmarks.nothing", 1)


@pytest.mark.parametrize("part", ["training", "evaluation", "figures", "captions"])
def test_the_table_in_small(part, tmp_path, monkeypatch, capsys):
    def in_this_process(module, *args):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert importlib.import_module(module).main(list(map(str, args))) == 0
        return json.loads(said.getvalue().splitlines()[-1])

    monkeypatch.setattr(benchmark_rows, "in_own_process", in_this_process)
    photos.write_photos(tmp_path / "pets", {"train": 40, "val": 2})
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    assert table.main([part, "--small", "--repeats", "1", "--json", str(tmp_path / "new" / "rows.json")]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert len(rows) == {"training": 4, "evaluation": 2, "figures": 3, "captions": 2}[part]
    for row in rows:
        assert row["op"] == ">=" and row["value"] > 0 and row["met"] == (row["value"] >= row["goal"])


def test_peaks_of_memory_are_those_of_the_command():
    little, much = starting.peak_mib("-c", "pass"), starting.peak_mib("-c", "x = bytearray(b'x' * 100 * 2**20)")
    assert 95 < much - little < 220, "the bytes and a copy of them"


def test_listing_counts_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "FILES", 200)
    assert starting.listing_seconds(tmp_path / "files") > 0 and starting.listing_seconds(tmp_path / "files") > 0


def test_a_part_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit) as error:
        table.main(["nothing"])
    assert error.value.code == 2 and "choose from training" in capsys.readouterr().err


def test_the_cost_of_a_sam_step_is_printed(capsys):
    assert sam_step.main(["--arch", "test_vit", "--batch-size", "2", "4", "--precision", "fp32", "--device", "cpu",
                          "--steps", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [["2", "SAM"], ["2", "ASAM"], ["4", "SAM"], ["4", "ASAM"]]
    assert all(0 < float(row[3]) < float(row[2]) for row in rows)  # what is outside, and the whole step


def test_the_time_of_a_caption_is_printed(capsys):
    assert caption_decoding.main(["--size", "small", "--tokens", "3", "--device", "cpu", "--repeats", "1"]) == 0
    kept, prefix, padded = (line.split() for line in capsys.readouterr().out.splitlines()[3:])
    assert [kept[0], prefix[0], padded[0]] == ["kept", "prefix", "padded"]
    for name, seconds, ratio in (prefix, padded):
        assert float(ratio) == pytest.approx(float(kept[1]) / float(seconds), rel=0.1, abs=0.02)
