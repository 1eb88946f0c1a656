import contextlib
import importlib
import io
import json

import pytest
import torch
from PIL import Image

from benchmarks import __main__ as table
from benchmarks import caption_decoding, photos, sam_step, scaling, starting, step, vit_base
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
    assert in_turn(2, {"a": lambda: calls.append("a") or 1, "b": lambda: calls.append("b") or 2}) == {"a": [1, 1], "b": [2, 2]}
    assert calls == ["a", "b", "a", "b"]


def test_a_way_in_a_process_of_its_own_says_what_went_wrong():
    with pytest.raises(RuntimeError, match="No module named benchmarks.nothing"):
        in_own_process("benchmarks.nothing", 1)


def in_this_process(module, *args):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert importlib.import_module(module).main(list(map(str, args))) == 0
    return json.loads(said.getvalue().splitlines()[-1])


@pytest.mark.parametrize("part", ["training", "evaluation", "figures", "captions", "vit-base"])
def test_the_table_in_small(part, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_rows, "in_own_process", in_this_process)
    monkeypatch.setattr(torch, "compile", lambda model: model)  # which takes half a minute
    photos.write_photos(tmp_path / "pets", {"train": 40, "val": 2})
    monkeypatch.setenv("REAL_DATA", str(tmp_path))
    assert table.main([part, "--small", "--repeats", "1", "--json", str(tmp_path / "new" / "rows.json")]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert len(rows) == {"training": 4, "evaluation": 2, "figures": 3, "captions": 2, "vit-base": 9}[part]
    for row in rows:
        met = row["value"] >= row["goal"] if row["op"] == ">=" else row["value"] <= row["goal"]
        assert row["value"] >= 0 and row["met"] == met


def test_the_arithmetic_of_a_vit_is_counted():
    """Products alone, written out: for ViT-B/16 and an image of 224, whose forward pass timm's paper counts as 17.6 GMACs."""
    width, depth, tokens, patches, hidden = 768, 12, 197, 196, 4 * 768
    embedding, head = patches * 768 * width, width * step.CLASSES
    block = tokens * width * (3 * width + width + 2 * hidden) + 2 * tokens ** 2 * width
    forward = embedding + depth * block + head
    assert forward == pytest.approx(17.56e9, rel=0.01)
    assert vit_base.flops_per_image("vit_base_patch16_224") == 2 * (3 * forward - embedding)  # no gradient for the image


def test_the_speed_of_a_device_is_that_of_its_data_sheet_or_of_a_product(monkeypatch):
    assert 1e9 < vit_base.peak_flops(torch.device("cpu"), "fp32") < 1e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert vit_base.peak_flops(torch.device("cuda"), "bf16") == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert vit_base.peak_flops(torch.device("cuda"), "bf16") == 756e12


def test_the_exchange_of_gradients_on_paper():
    """A ring played step by step: each of n sends a part of 1/n to the next, n - 1 times to add and n - 1 times to spread."""
    def sent(size, n):
        return sum(size / n for _ in range(n - 1)) + sum(size / n for _ in range(n - 1))

    size = 343e6
    within = sent(size, 8) / scaling.WITHIN
    assert scaling.exchange_seconds(size, 8) == pytest.approx(within)
    assert scaling.exchange_seconds(size, 64) == pytest.approx(within + sent(size / 8, 8) / scaling.ACROSS)
    assert scaling.exchange_seconds(size, 1) == 0
    assert scaling.efficiency(within, size, 8, 1) == pytest.approx(1 / 2)
    assert scaling.efficiency(within, size, 8, 2) == pytest.approx(1 / 3)


def test_scaling_in_small(tmp_path, monkeypatch):
    """With one launch of two processes, whose answer stands for all: each takes seconds to start."""
    launched = []

    def in_few_processes(module, *args):
        if module == "benchmarks.step":
            return {**in_this_process(module, *args), "memory": 2**20}  # this process has taken its memory before
        if not launched:
            launched.append(in_own_process(module, *args))
        return launched[0]

    for place in (benchmark_rows, scaling):
        monkeypatch.setattr(place, "in_own_process", in_few_processes)
    assert scaling.main(["--small", "--device", "cpu", "--batch-size", "2", "--steps", "1",
                         "--output", str(tmp_path / "new" / "scaling.png")]) == 0
    found = json.loads((tmp_path / "new" / "scaling.json").read_text())
    assert [(point["value"], point["optimizer"]) for point in found["batch size"]] == [
        (1, "adam"), (1, "sam"), (2, "adam"), (2, "sam")]
    assert [(point["value"], point["optimizer"]) for point in found["processes"]] == [
        (1, "adam"), (2, "adam"), (1, "sam"), (2, "sam"), (2, "joint")]
    for point in found["batch size"] + found["processes"]:
        images = 4 if "processes" in found and point in found["processes"] else point["value"]
        assert point["images_per_second"] == pytest.approx(images / point["seconds"])
    assert all(0 < row["efficiency"] <= 1 for row in found["paper"]["steps"])
    assert Image.open(tmp_path / "new" / "scaling.png").size[0] > 1000


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
