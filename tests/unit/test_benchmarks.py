"""The table of benchmarks: its rows and what they are made of, without a script and without a process."""

import argparse
import json
import re
import time

import pytest
import torch

from benchmarks import evaluation, memory, rows, training
from benchmarks.rows import compare, line, pace, row, seconds
from common.machine import usable_cores

SMALL = argparse.Namespace(small=True, repeats=1, device=torch.device("cpu"))


def test_a_ratio_is_the_median_over_the_turns_and_is_met_or_not():
    fast = row("fast", "images/s", ">=", 2, [2.0, 9.0, 3.0], [1.0, 2.0, 2.0])
    assert fast.value == 2 and fast.spread == [1.5, 4.5] and fast.met
    assert (fast.ours, fast.other) == (3, 2)
    assert not row("slow", "images/s", ">=", 2.1, [2.0], [1.0]).met
    assert row("wait", "s", "<=", 0.4, [0.3, 0.5, 0.4]).met and not row("wait", "s", "<=", 0.4, [0.5]).met
    assert " NO " in line(row("wait", "s", "<=", 0.4, [0.5])) and " yes " in line(fast)


def test_a_ratio_of_sides_that_were_measured_in_unequal_turns_is_refused():
    with pytest.raises(ValueError):
        row("fast", "s", ">=", 2, [1.0, 2.0], [1.0])


def test_a_row_says_everything_in_json():
    fast = row("fast", "images/s", ">=", 2, [2.0, 9.0, 3.0], [1.0, 2.0, 2.0])
    assert json.loads(json.dumps(vars(fast))) == {
        "what": "fast", "value": 2, "op": ">=", "goal": 2, "met": True, "spread": [1.5, 4.5],
        "ours": 3, "other": 2, "unit": "images/s"}
    alone = vars(row("wait", "s", "<=", 0.4, [0.5]))
    assert alone["ours"] == 0.5 and alone["other"] is None and not alone["met"]


@pytest.fixture
def measured(monkeypatch):
    """`results`, which new processes return in this order, and the `calls` of them so far."""
    measured = argparse.Namespace(results=[], calls=[])

    def next_result(*call):
        measured.calls.append(call)
        return measured.results.pop(0)

    monkeypatch.setattr(rows, "in_new_process", next_result)
    return measured


def test_turns_alternate_and_each_side_has_its_own_numbers(measured):
    measured.results = [(2.0, "x"), (1.0, "x"), (4.0, None), (8.0, "x"), (2.0, "x"), (1.0, None)]
    first, second = compare(2, "ours", "images/s", (max, 1), ("one", 3, min, 2), ("two", 1, sum, 3, 4))
    assert measured.calls == [(max, 1), (min, 2), (sum, 3, 4)] * 2
    assert (first.what, first.op, first.goal, first.value) == ("ours / one", ">=", 3, 3)
    assert (second.what, second.goal, second.value, second.met) == ("ours / two", 1, 4.25, True)


def test_results_that_differ_in_any_turn_are_an_error(measured):
    measured.results = [(1.0, 1), (1.0, 1), (1.0, 1), (1.0, 2)]
    with pytest.raises(RuntimeError, match="ours / one: the results differ"):
        list(compare(2, "ours", "s", (max,), ("one", 3, min)))


def test_a_pace_counts_a_second_and_has_the_result():
    speed, result = pace(3, lambda x: time.sleep(0.1) or x, 7)
    assert 3 < speed < 30 and result == 7
    assert 0.1 < seconds(time.sleep, 0.1) < 1


def test_photos_are_links_to_the_real_ones_with_names_of_their_own(tmp_path, monkeypatch):
    sources = tmp_path / "pets" / "train"
    sources.mkdir(parents=True)
    for name in ("0_a.jpg", "1_b.jpg", "2_c.jpg"):
        (sources / name).write_text(name)
    monkeypatch.setattr(evaluation, "REAL_DATA", str(tmp_path))
    paths = evaluation.photo_folder(tmp_path / "photos", 80)
    assert paths == sorted((tmp_path / "photos").rglob("*.jpg")) and len({path.stem for path in paths}) == 80
    assert len({path.parent for path in paths}) == evaluation.CLASSES
    assert {path.read_text() for path in paths} == {"0_a.jpg", "1_b.jpg", "2_c.jpg"}


def test_the_arithmetic_of_a_vit_is_counted():
    """Products alone, written out: for ViT-B/16 and an image of 224, 17.6 GMACs forward by timm's count."""
    width, depth, tokens, patches, hidden = 768, 12, 197, 196, 4 * 768
    embedding, head = patches * 768 * width, width * training.CLASSES
    block = tokens * width * (3 * width + width + 2 * hidden) + 2 * tokens**2 * width
    forward = embedding + depth * block + head
    assert forward == pytest.approx(17.56e9, rel=0.01)
    backward = 2 * forward - embedding  # no gradient for the image
    assert training.FLOPS == pytest.approx(2 * (forward + backward), rel=1e-3)


class Counting(torch.nn.Linear):
    pretrained_cfg = {"input_size": [3]}

    def __init__(self):
        super().__init__(3, training.CLASSES)
        self.inputs = []

    def forward(self, images):
        self.inputs.append(self.weight.detach().clone())
        return super().forward(images)


def test_a_step_of_sam_and_its_two_passes_see_as_many_batches(monkeypatch):
    model = Counting()
    monkeypatch.setattr(training.timm, "create_model", lambda arch, num_classes: model)
    passes = {}
    for way in ("step", "plain", "passes", "sam"):
        model.inputs.clear()
        measured = training.steps(3, [way], "any", 2, "fp32", torch.device("cpu"))
        passes[way] = [*model.inputs]
        assert len(measured[way]) == 3 and all(time > 0 and peak > 0 for time, peak in measured[way])
    assert {way: len(weights) for way, weights in passes.items()} == {
        "step": 5, "plain": 5, "passes": 10, "sam": 10}
    assert torch.equal(passes["passes"][0], passes["passes"][1])
    assert not torch.equal(passes["sam"][0], passes["sam"][1])  # the perturbed weights


@pytest.mark.parametrize("name, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
                                        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA L4", None)])
def test_rows_on_a_gpu_have_its_memory_and_arithmetic(monkeypatch, name, peak):
    measured = {"passes": [(1.0, 700), (1.0, 700)], "sam": [(1.02, 1000), (1.06, 1000)]}
    monkeypatch.setattr(training, "in_new_process", lambda *call: measured)
    of_300_mib = torch.nn.Linear(2**18, 300, bias=False, device="meta")
    monkeypatch.setattr(training.timm, "create_model", lambda arch, num_classes: of_300_mib)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    setting = "vit_base_patch16_224", 128, "bf16", torch.device("cuda"), True
    time, memory, *flops = training.sam_rows(1.03, 2, *setting)
    assert time.value == pytest.approx(1.04) and not time.met and "torch.compile" in time.what
    assert memory.value == 1 and memory.met and memory.ours == 1000
    assert [row.value for row in flops] == ([] if peak is None else [
        pytest.approx(sum(2 * 128 * 105.1e9 / seconds / peak for seconds in (1.02, 1.06)) / 2)])


@pytest.fixture
def rows_of(measured, monkeypatch, tmp_path):
    """`rows_of(part, *results)`: its rows where its calls return those."""
    def call(part, *results):
        for name in ("photo_folder", "write_checkpoint"):
            monkeypatch.setattr(evaluation, name, lambda *args: [])
        measured.results = list(results)
        return list(part(SMALL, tmp_path))

    return call


def test_maps_that_differ_from_the_plain_loop_are_an_error(rows_of):
    photos, maps = [(4.0, None), (16.0, None)], torch.rand(4, 3, 3).numpy()
    near, far = (2.0, maps + 1e-6), (2.0, maps + 1e-4)
    grids, figures = [(30.0, None), (2.0, None)], [(3.6, None), (2.0, None)]
    table = rows_of(evaluation.evaluation, *photos, (3.0, maps), near, *grids, *figures)
    assert [(row.value, row.met) for row in table] == [(0.25, False), (1.5, True), (15, True), (1.8, True)]
    with pytest.raises(RuntimeError, match="not fused: the results differ"):
        rows_of(evaluation.evaluation, *photos, (3.0, maps), far)


def test_captions_that_differ_are_an_error(rows_of):
    ids = list(range(evaluation.TOKENS))
    row, = rows_of(evaluation.captions, (8.0, ids), (1.0, ids))
    assert (row.value, row.met) == (8, False)
    for wrong in ([*ids[1:], 0], ids[1:]):
        with pytest.raises(RuntimeError, match="differ"):
            rows_of(evaluation.captions, (8.0, ids), (0.5, wrong))


def test_the_table_says_which_processor_gave_it(monkeypatch):
    words = rows.processor(torch.device("cpu"))
    assert re.match(rf"{usable_cores()} cores \S", words) and words.endswith(f"torch {torch.__version__}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert rows.processor(torch.device("cuda")) == f"NVIDIA H100; torch {torch.__version__}"


def test_the_table_of_memory_counts_the_arithmetic_of_an_epoch(monkeypatch):
    monkeypatch.setattr(memory, "estimate", lambda *setting: 2**30 * (1 + setting[3]))
    monkeypatch.setattr(memory, "ARCHS", ["vit_base_patch16_224"])
    heading, _, line, larger = memory.table(small=False)
    assert heading.startswith("| model | pixels | Adam bf16 | SAM bf16 | Adam fp32 | SAM fp32 | TFLOP | T4 |")
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:7] == ["vit_base", "224", "1.0", "2.0", "1.0", "2.0", f"{training.FLOPS * 3680 / 1e12:.0f}"]
    assert float(cells[7]) == pytest.approx(training.FLOPS * 3680 / (0.3 * 65e12), abs=0.06)
    assert float(larger.split("|")[7]) > 3 * float(cells[6])
