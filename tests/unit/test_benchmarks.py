"""The table of benchmarks: its rows and what they are made of, without a script and without a process."""

import argparse
import json

import pytest
import torch

from benchmarks import captions, evaluation, figures, page, rows, training
from benchmarks.rows import Row, in_turn, ratio, run_script
from common.errors import BadInput

SMALL = argparse.Namespace(small=True, repeats=1, device=torch.device("cpu"))


def test_a_ratio_is_the_median_over_the_turns_and_is_met_or_not():
    row = ratio("fast", [2.0, 9.0, 3.0], [1.0, 2.0, 2.0], ">=", 2, "images/s")
    assert row.values == [2, 4.5, 1.5] and row.value == 2 and row.met
    assert (row.ours, row.other) == (3, 2)
    assert not ratio("slow", [2.0], [1.0], ">=", 2.1, "images/s").met
    assert Row("wait", [0.3, 0.5, 0.4], "<=", 0.4).met and not Row("wait", [0.5], "<=", 0.4).met
    assert " NO " in str(Row("wait", [0.5], "<=", 0.4)) and " yes " in str(row)


def test_a_ratio_of_sides_that_were_measured_in_unequal_turns_is_refused():
    with pytest.raises(ValueError):
        ratio("fast", [1.0, 2.0], [1.0], ">=", 2, "s")


def test_a_row_says_everything_in_json():
    row = ratio("fast", [2.0, 9.0, 3.0], [1.0, 2.0, 2.0], ">=", 2, "images/s")
    assert json.loads(json.dumps(row.as_json())) == {
        "what": "fast", "value": 2, "op": ">=", "goal": 2, "met": True, "spread": [1.5, 4.5],
        "ours": 3, "other": 2, "unit": "images/s"}
    lone = Row("wait", [0.5], "<=", 0.4).as_json()
    assert lone["ours"] is None and lone["spread"] == [0.5, 0.5] and not lone["met"]


def test_turns_alternate(monkeypatch):
    calls = []
    monkeypatch.setattr(rows, "in_new_process", lambda function, *args: calls.append(args) or function(*args))
    assert in_turn(2, a=(max, 1, 2), b=(min, 3, 4)) == {"a": [2, 2], "b": [3, 3]}
    assert calls == [(1, 2), (3, 4), (1, 2), (3, 4)]


def test_a_script_is_quiet_unless_it_fails(capsys):
    def main(args):
        print("so", *args)
        return int(args == ["1"])

    run_script(main, 0)
    with pytest.raises(RuntimeError, match="so 1"):
        run_script(main, 1)
    assert capsys.readouterr() == ("", "")


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
    monkeypatch.setattr(training, "keep_freed_memory", lambda device: None)
    passes = {}
    for way in ("adam", "passes", "sam"):
        model.inputs.clear()
        measured, weights = training.steps(3, [way], "any", 2, "fp32", torch.device("cpu"))
        passes[way] = [*model.inputs]
        times, peaks = measured[way]
        assert len(times) == len(peaks) == 3 and min(times) > 0
    assert {way: len(weights) for way, weights in passes.items()} == {"adam": 5, "passes": 10, "sam": 10}
    assert torch.equal(passes["passes"][0], passes["passes"][1])
    assert not torch.equal(passes["sam"][0], passes["sam"][1])  # the perturbed weights
    assert weights == 4 * 4 * training.CLASSES


@pytest.mark.parametrize("name, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
                                        ("NVIDIA L4", None)])
def test_rows_on_a_gpu_have_its_memory_and_arithmetic(monkeypatch, name, peak):
    measured = {"passes": [(1.0, 1.0), (700 * 2**20,) * 2], "sam": [(1.02, 1.06), (1000 * 2**20,) * 2]}
    monkeypatch.setattr(training, "in_new_process", lambda *call: (measured, 300 * 2**20))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    setting = "vit_base_patch16_224", 128, "bf16", torch.device("cuda"), True
    time, memory, *flops = training.sam_rows(1.03, 2, *setting)
    assert time.value == pytest.approx(1.04) and not time.met and "torch.compile" in time.what
    assert memory.value == 1 and memory.met and memory.ours == 1000
    assert [row.value for row in flops] == ([] if peak is None else [
        pytest.approx(sum(2 * 128 * 105.1e9 / seconds / peak for seconds in (1.02, 1.06)) / 2)])


@pytest.fixture
def fakes(monkeypatch):
    """What a part measures is replaced by results: `fakes(part, **results)`."""
    def replace(part, **results):
        for name in ("photo_folder", "write_checkpoint"):
            monkeypatch.setattr(part, name, lambda *args: None, raising=False)
        monkeypatch.setattr(part, "in_turn", lambda repeats, **ways: {name: results[name] for name in ways})
        return list(part.rows(SMALL))

    return replace


def test_predictions_that_differ_from_the_plain_loop_are_an_error(fakes):
    others = {"tensor": [(0.5,)], "photos": [(2.0, ["1", "2"])]}
    tensor, plain = fakes(evaluation, **others, plain=[(8.0, ["1", "2"], None)])
    assert (tensor.value, tensor.met, plain.value, plain.met) == (0.25, False, 4, True)
    with pytest.raises(RuntimeError, match="differ"):
        fakes(evaluation, **others, plain=[(8.0, ["1", "1"], None)])


def test_captions_that_differ_are_an_error(fakes):
    ids = list(range(captions.TOKENS))
    prefix, padded = fakes(captions, cached=[(0.5, ids)], prefix=[(4.0, ids)], padded=[(6.0, ids)])
    assert (prefix.value, prefix.met, padded.value, padded.met) == (8, False, 12, True)
    for wrong in ([*ids[1:], 0], ids[1:]):
        with pytest.raises(RuntimeError, match="differ"):
            fakes(captions, cached=[(0.5, ids)], prefix=[(4.0, ids)], padded=[(6.0, wrong)])
    with pytest.raises(RuntimeError, match="differ"):
        fakes(captions, cached=[(0.5, [1])], prefix=[(4.0, [1])], padded=[(6.0, [1])])  # too short


def test_maps_that_differ_are_an_error(fakes, monkeypatch):
    monkeypatch.setattr(figures, "grid_as_one_image", lambda similarity, path: None)
    monkeypatch.setattr(figures, "grid_of_subplots", lambda similarity, path: None)
    maps = torch.rand(4, 3, 3).numpy()
    _, attention = fakes(figures, ours=[(2.0, maps)], plain=[(3.0, [], maps + 1e-6)])
    assert attention.value == 1.5 and attention.met
    with pytest.raises(RuntimeError, match="differ"):
        fakes(figures, ours=[(2.0, maps)], plain=[(3.0, [], maps + 1e-4)])


def test_a_page_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "index.html")
    monkeypatch.setattr(page, "CHROMIUM", "chromium")
    with pytest.raises(BadInput, match="run demo.sh"):
        list(page.rows(SMALL))
    monkeypatch.setattr(page, "CHROMIUM", None)
    with pytest.raises(BadInput, match="install the package chromium"):
        list(page.rows(SMALL))
