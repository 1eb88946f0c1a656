"""Runs of p1_train.py on a GPU, as processes where a process is the point."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from engine.loop import Loop
from tests.helpers.training import TRAIN, computed, metrics, same, train, weights

ROOT = Path(__file__).resolve().parents[2]
# Kills itself with SIGKILL in the middle of the second epoch, once its state is saved.
KILLED = """
import os, signal, sys
import p1_train
from engine.loop import Loop
end_step = Loop.end_step
def die(self, *sums):
    end_step(self, *sums)
    if (self.state.epoch, self.state.step) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
Loop.end_step = die
sys.exit(p1_train.main())
"""
# With 32 MiB of the GPU's memory.
SMALL_GPU = """
import sys, torch
torch.cuda.set_per_process_memory_fraction(2**25 / torch.cuda.get_device_properties(0).total_memory)
import p1_train
sys.exit(p1_train.main())
"""


def start(data, output, *flags, code=None, **environment):
    """A process of p1_train.py, or of `code`, on the GPU."""
    arguments = ["--data", data, "--output", output, *TRAIN, "--device", "cuda", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    environment.pop("CUBLAS_WORKSPACE_CONFIG", None)  # the script sets it itself
    return subprocess.Popen([sys.executable, *(["-c", code] if code else ["p1_train.py"]),
                             *map(str, arguments)], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process):
    """(exit code, what it printed to stderr)."""
    _, stderr = process.communicate(timeout=200)
    return process.returncode, stderr


def only_error(stderr):
    """The line that says why a run ended, the only one of its kind."""
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in stderr, stderr
    return errors[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_seed_gives_the_same_bits_again_and_after_a_kill(shapes, tmp_path, precision):
    settings = ["--deterministic", "--epochs", 3, "--sam", "--ema", 0.8, "--mixup", 0.5, "--cutmix", 1,
                "--precision", precision, "--save-every", 1]
    one, other, killed = (start(shapes, tmp_path / name, *settings, code=code)
                          for name, code in (("one", None), ("other", None), ("killed", KILLED)))
    assert ended(killed)[0] == -9
    position = torch.load(tmp_path / "killed" / "last.pt", weights_only=True)["resume"]
    assert (position["epoch"], position["step"]) == (1, 2)
    resumed = start(shapes, tmp_path / "killed", *settings, "--resume")
    assert [ended(process)[0] for process in (one, other, resumed)] == [0] * 3
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "one", name), weights(tmp_path / "other", name))
        assert same(weights(tmp_path / "one", name), weights(tmp_path / "killed", name))
    assert computed(tmp_path / "one") == computed(tmp_path / "other") == computed(tmp_path / "killed")
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)["resume"]
              for name in ("one", "killed")]
    for kind in ("exp_avg", "exp_avg_sq", "step"):
        one, killed = ({key: state[kind] for key, state in each["optimizer"]["state"].items()}
                       for each in states)
        assert same(one, killed)
    assert states[0]["scaler"] == states[1]["scaler"] and same(*(each["average"] for each in states))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_sam_learns_in_each_precision(many_shapes, tmp_path, precision, record_property):
    assert train(many_shapes, tmp_path / "run", "--device", "cuda", "--sam", "--precision", precision,
                 "--holdout", 0, "--batch-size", 8, "--lr", 2e-3, "--epochs", 16) == 0
    first, *_, last = metrics(tmp_path / "run")
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    record_property(f"SAM in {precision}, accuracy on 4 shapes after 16 epochs", last["train_accuracy"])
    assert float(last["train_loss"]) < float(first["train_loss"]) - 0.1
    assert float(last["train_accuracy"]) > 0.4 and last["skipped_steps"] == "0"


@pytest.mark.parametrize("flags, waits", [
    (["--optimizer", "adam"], 1), (["--sam"], 1), (["--sam", "--adaptive"], 1),
    (["--sam", "--accumulate", 2, "--mixup", 0.5, "--cutmix", 1, "--label-smoothing", 0.1, "--ema", 0.9], 1),
    (["--sam", "--precision", "bf16"], 1), (["--sam", "--precision", "fp16"], 2)])
def test_a_step_waits_once_for_the_gpu_and_in_fp16_the_scaler_once_more(shapes, tmp_path, monkeypatch, flags,
                                                                        waits):
    """From the end of the first step of an epoch to that of the second."""
    counts, end_step = [], Loop.end_step

    def counting(self, *sums):
        end_step(self, *sums)
        counts.append(len([each for each in caught if "synchronizing" in str(each.message)]))

    monkeypatch.setattr(Loop, "end_step", counting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            assert train(shapes, tmp_path / "run", "--device", "cuda", "--epochs", 2, "--batch-size", 4,
                         "--holdout", 0, *flags) == 0
        finally:
            torch.cuda.set_sync_debug_mode("default")
    between = [after - before for before, after in zip(counts, counts[1:])]
    steps = len(counts) // 2
    assert between[:steps - 1] == between[steps:] == [waits] * (steps - 1)


def tensors(content):
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors(value)


def test_checkpoints_are_read_where_there_is_no_gpu(shapes, tmp_path):
    assert train(shapes, tmp_path / "run", "--device", "cuda", "--epochs", 1, "--sam", "--ema", 0.9) == 0
    for name in ("last.pt", "best.pt"):
        found = list(tensors(torch.load(tmp_path / "run" / name, weights_only=True)))
        assert len(found) > 50 and {value.device.type for value in found} == {"cpu"}
    code = f"import torch; print(torch.load({str(tmp_path / 'run' / 'best.pt')!r}).keys())"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)


def test_a_run_records_its_gpu(shapes, tmp_path):
    assert train(shapes, tmp_path / "run", "--device", "cuda", "--epochs", 1) == 0
    gpu = json.loads((tmp_path / "run" / "config.json").read_text())["gpu"]
    assert gpu["name"] == torch.cuda.get_device_name()
    assert gpu["capability"] == "{}.{}".format(*torch.cuda.get_device_capability())
    assert gpu["driver"]


def test_a_full_gpu_is_one_line(shapes, tmp_path):
    code, stderr = ended(start(shapes, tmp_path / "run", "--sam", "--batch-size", 32, "--holdout", 0,
                               code=SMALL_GPU))
    assert code == 2 and "memory" in only_error(stderr)


def test_more_ranks_than_gpus_are_one_line(shapes, tmp_path):
    """Two on one GPU."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "--redirects", "3", "--log-dir", tmp_path / "log", "p1_train.py"]
    done = subprocess.run([*torchrun, "--data", shapes, "--output", tmp_path / "run", *TRAIN, "--device",
                           "cuda"], cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": first}, text=True,
                          capture_output=True, timeout=200)
    only_error("".join(path.read_text() for path in (tmp_path / "log").rglob("stderr.log")))
    codes = set(re.findall(r"exitcode *: (-?\d+)", done.stderr))
    assert codes & {"2", "3"} and codes <= {"2", "3", "-15"}, done.stderr
