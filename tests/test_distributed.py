"""Two gloo processes on this machine."""

import contextlib
import csv
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import p1_train
from sam import SAM

STEPS, MICRO_BATCHES = 5, 3


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def data(dtype=torch.float64):
    """Images and targets by [step, process, micro-batch]."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(STEPS, 2, MICRO_BATCHES, 4, 5, generator=generator, dtype=dtype),
            torch.randint(0, 3, (STEPS, 2, MICRO_BATCHES, 4), generator=generator))


def train(rank, base, options, synchronised, dtype):
    """The recipe of sam.py's docstring. Returns (weights, the tops that this process climbed to, averaging passes)."""
    ddp = DistributedDataParallel(network(dtype))
    averaged, tops = [], []
    ddp.register_comm_hook(None, lambda state, bucket: averaged.append(None) or dist.all_reduce(
        bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0] / 2))
    optimizer = SAM(ddp.parameters(), base, rho=0.5, model=ddp, synchronised=synchronised, **options)
    images, targets = data(dtype)
    for step in range(STEPS):
        batches = list(zip(images[step, rank], targets[step, rank]))

        def closure():
            optimizer.zero_grad()
            tops.append([p.detach().clone() for p in ddp.parameters()])
            for i, (x, y) in enumerate(batches):
                with ddp.no_sync() if i + 1 < len(batches) else contextlib.nullcontext():
                    (cross_entropy(ddp(x), y) / len(batches)).backward()

        optimizer.step(closure)
    return [p.detach() for p in ddp.parameters()], tops[1::2], len(averaged)


CASES = {
    "own": (torch.optim.SGD, {"lr": 0.1}, False, torch.float64),
    "joint, Adam": (torch.optim.Adam, {"lr": 1e-2}, True, torch.float64),
    "joint, SGD": (torch.optim.SGD, {"lr": 0.1}, True, torch.float32),
}


def overflow(rank):
    """fp16 with an overflow in the first pass of process 1 alone: both must skip the step. Returns (weights, scale)."""
    ddp = DistributedDataParallel(network(torch.float32))
    optimizer = SAM(ddp.parameters(), torch.optim.SGD, lr=0.1, model=ddp)
    scaler, calls = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    x, y = (part[0, rank, 0] for part in data(torch.float32))

    def closure():
        optimizer.zero_grad()
        calls.append(None)
        factor = float("inf") if rank == 1 and len(calls) == 1 else 1.0
        scaler.scale(cross_entropy(ddp(x), y) * factor).backward()

    optimizer.step(closure, scaler)
    scaler.update()
    return [p.detach() for p in ddp.parameters()], scaler.get_scale()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    results = {name: train(rank, *case) for name, case in CASES.items()}
    torch.save({**results, "overflow": overflow(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(worker, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def gradients(weights, x, y):
    values = [value.clone().requires_grad_() for value in weights]
    log_probabilities = torch.log_softmax(torch.tanh(x @ values[0].T + values[1]) @ values[2].T + values[3], 1)
    return torch.autograd.grad(-log_probabilities[torch.arange(len(y)), y].mean(), values)


def test_each_process_climbs_along_its_own_gradient_and_all_end_alike(results):
    """Against the equations written out for both processes."""
    images, targets = data()
    weights = [p.detach().clone() for p in network().parameters()]
    for step in range(STEPS):
        second = []
        for rank in (0, 1):
            batch = images[step, rank].flatten(0, 1), targets[step, rank].flatten()
            g = gradients(weights, *batch)
            norm = sum((x**2).sum() for x in g) ** 0.5
            top = [w + 0.5 * x / norm for w, x in zip(weights, g)]
            assert_close(results[rank]["own"][1][step], top, 1e-12)
            second.append(gradients(top, *batch))
        weights = [w - 0.1 * (a + b) / 2 for w, a, b in zip(weights, *second)]
    assert_close(results[0]["own"][0], weights, 1e-12)
    assert_close(results[0]["own"][0], results[1]["own"][0], 0)


@pytest.mark.parametrize("case, tolerance", [("joint, Adam", 1e-10), ("joint, SGD", 1e-6)])
def test_synchronised_processes_equal_one_with_the_joint_batch(results, case, tolerance):
    base, options, _, dtype = CASES[case]
    model = network(dtype)
    optimizer = SAM(model.parameters(), base, rho=0.5, model=model, **options)
    images, targets = data(dtype)
    for step in range(STEPS):
        def closure():
            optimizer.zero_grad()
            cross_entropy(model(images[step].flatten(0, 2)), targets[step].flatten()).backward()

        optimizer.step(closure)
    for rank in (0, 1):
        assert_close(results[rank][case][0], [p.detach() for p in model.parameters()], tolerance)


def test_gradients_are_averaged_no_more_often_than_needed(results):
    """Once a step where each climbs along its own gradient, else once a pass, whatever the number of micro-batches."""
    for rank in (0, 1):
        assert results[rank]["own"][2] == STEPS
        assert results[rank]["joint, Adam"][2] == 2 * STEPS


def test_an_overflow_in_one_process_is_skipped_in_all(results):
    for weights, scale in (result["overflow"] for result in results):
        assert_close(weights, [p.detach() for p in network(torch.float32).parameters()], 0)
        assert scale == 512


ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["--arch", "test_vit", "--scratch", "--device", "cpu", "--workers", "0", "--lr", "1e-2", "--epochs", "2",
            "--optimizer", "sgd", "--sam", "--rho", "0.2"]


def run(data, output, *arguments, processes):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), ROOT / "p1_train.py", "--data", data,
               "--output", output, *SETTINGS, *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def last(output):
    with open(output / "metrics.csv") as file:
        return torch.load(output / "last.pt", weights_only=True)["state_dict"], list(csv.DictReader(file))


def test_p1_train_under_torchrun_equals_one_process_with_the_same_global_batch(shapes, tmp_path):
    """27 images to fit, 12 a step in micro-batches of 2, the last one a single image: process 1 has no part in it."""
    data = shutil.copytree(shapes, tmp_path / "data")
    for name in ("0_0.jpg", "1_0.jpg"):
        (data / "train" / name).unlink()
    said = run(data, tmp_path / "two", "--climb", "joint", "--batch-size", 1, "--accumulate", 6, processes=2)
    assert said.count("27 images to train on, 3 held out") == said.count("epoch 1/2") == said.count("done:") == 1
    run(data, tmp_path / "one", "--batch-size", 12, processes=1)
    (two, rows), (one, expected) = last(tmp_path / "two"), last(tmp_path / "one")
    assert max((two[key] - one[key]).abs().max().item() for key in one) < 1e-5
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row, other in zip(rows, expected, strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-5)
        for name in ("train_accuracy", "holdout_accuracy", "lr"):
            assert float(row[name]) == pytest.approx(float(other[name]))


def test_p1_train_under_torchrun_climbs_by_process_in_fp16_with_accumulation(shapes, tmp_path, capsys):
    arguments = ["--precision", "fp16", "--batch-size", 2, "--accumulate", 2, "--save-every", "1s"]
    run(shapes, tmp_path / "run", *arguments, processes=2)
    weights, rows = last(tmp_path / "run")
    assert all(value.isfinite().all() for value in weights.values()) and len(rows) == 2
    assert p1_train.main(["--data", str(shapes), "--output", str(tmp_path / "run"), *SETTINGS, *map(str, arguments),
                          "--resume"]) == 2
    assert "the number of processes is 1 now and was 2 before" in capsys.readouterr().err
