"""Two gloo processes on this machine, and three."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sam import SAM
from tests.helpers import forked, train_in_pairs
from tests.helpers.train_in_pairs import ADAM_SAM, SETTINGS, TINY, TWO
from tests.helpers.training import largest_difference, metrics, same, weights

ROOT = Path(__file__).resolve().parents[2]
STEPS, MICRO_BATCHES = 5, 3


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def data(dtype=torch.float64):
    """Images and targets by [step, process, micro-batch]."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(STEPS, 2, MICRO_BATCHES, 4, 5, generator=generator, dtype=dtype),
            torch.randint(0, 3, (STEPS, 2, MICRO_BATCHES, 4), generator=generator))


def train(rank, base, options, sync_perturbation, dtype):
    """The recipe of sam.py's docstring. Returns (weights, the rank's perturbed weights, averaging passes)."""
    ddp = DistributedDataParallel(network(dtype))
    averaged, tops = [], []
    ddp.register_comm_hook(None, lambda state, bucket: averaged.append(None) or dist.all_reduce(
        bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0] / 2))
    optimizer = SAM(ddp.parameters(), base, rho=0.5, model=ddp, sync_perturbation=sync_perturbation,
                    **options)
    images, targets = data(dtype)
    for step in range(STEPS):
        batches = list(zip(images[step, rank], targets[step, rank]))

        def closure(batches=batches):
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
    """fp16 with an overflow in the first pass of process 1 alone: both must skip the step.

    Returns (weights, scale).
    """
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
    processes = [forked.fresh(worker, rank, folder, log=folder / "log") for rank in (0, 1)]
    for process in processes:
        process.join(timeout=100)
        assert process.exitcode == 0, (folder / "log").read_text()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def gradients(weights, x, y):
    values = [value.clone().requires_grad_() for value in weights]
    hidden = torch.tanh(x @ values[0].T + values[1])
    log_probabilities = torch.log_softmax(hidden @ values[2].T + values[3], 1)
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
        def closure(step=step):
            optimizer.zero_grad()
            cross_entropy(model(images[step].flatten(0, 2)), targets[step].flatten()).backward()

        optimizer.step(closure)
    for rank in (0, 1):
        assert_close(results[rank][case][0], [p.detach() for p in model.parameters()], tolerance)


def test_gradients_are_averaged_no_more_often_than_needed(results):
    """Once a step where each perturbs along its own gradient, else once a pass, for any micro-batches."""
    for rank in (0, 1):
        assert results[rank]["own"][2] == STEPS
        assert results[rank]["joint, Adam"][2] == 2 * STEPS


def test_an_overflow_in_one_process_is_skipped_in_all(results):
    for parameters, scale in (result["overflow"] for result in results):
        assert_close(parameters, [p.detach() for p in network(torch.float32).parameters()], 0)
        assert scale == 512


# p1_train.py and p1_eval.py ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(shapes, tmp_path_factory):
    """What tests/helpers/train_in_pairs.py leaves. 25 images to fit, 12 a step: in the last one, of a
    single image, process 1 has no part."""
    folder = tmp_path_factory.mktemp("pairs")
    shutil.copytree(shapes, folder / "data")
    for name in ("0_0.jpg", "1_0.jpg", "2_0.jpg", "3_0.jpg"):
        (folder / "data" / "train" / name).unlink()
    (folder / "one image").mkdir()
    shutil.copy(shapes / "val" / "0_0.jpg", folder / "one image")
    process = forked.fresh(train_in_pairs.main, folder / "data", folder, log=folder / "errors")
    process.join(timeout=300)
    assert process.exitcode == 0, (folder / "errors").read_text()
    return folder


def codes(pairs, name):
    """The exit codes, by run and process, and what they printed together."""
    return json.loads((pairs / "codes.json").read_text())[name], (pairs / f"{name}.log").read_text()


@pytest.mark.parametrize("case, tolerance", [("sgd", 1e-5), ("sam", 1e-5), ("adam64", 1e-8)])
def test_two_processes_train_as_one_with_the_same_global_batch(pairs, case, tolerance):
    printed = codes(pairs, f"{case} two")[1]
    for line in ("25 images to train on, 3 held out", "epoch 1/2", "done:"):
        assert printed.count(line) == 1, printed
    two, one = weights(pairs / f"{case} two"), weights(pairs / f"{case} one")
    assert one["head.weight"].dtype == (torch.float64 if case == "adam64" else torch.float32)
    assert largest_difference(two, one) < tolerance
    rows, expected = metrics(pairs / f"{case} two"), metrics(pairs / f"{case} one")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row, other in zip(rows, expected, strict=True):
        for name in ("train_loss", "holdout_loss"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-5)
        for name in ("train_accuracy", "holdout_accuracy", "lr"):
            assert float(row[name]) == pytest.approx(float(other[name]))


LOST = "error: another process of this run has failed"


@pytest.mark.parametrize("name, ends, message", [
    ("lost 1", [3, -signal.SIGKILL], f"{LOST}: --resume goes on after step 2 of epoch 1"),
    ("lost 0", [-signal.SIGKILL, 3], f"{LOST}: --resume goes on after step 2 of epoch 1"),
    ("stopped 1", [143, 143], "stopped by SIGTERM after step 2 of epoch 1: --resume goes on from"),
    ("stopped both", [143, 143], "stopped by SIGTERM after step 2 of epoch 1: --resume goes on from"),
])
def test_lost_and_stopped_processes_leave_a_state_from_which_both_resume_exactly(pairs, name, ends, message):
    """With SAM, averaged weights and loading processes."""
    (ended, resumed), printed = codes(pairs, name)
    assert ended == ends and resumed == [0, 0], printed
    assert printed.count(message) == 1 and "Traceback" not in printed, printed
    for file in ("last.pt", "best.pt"):
        assert same(weights(pairs / name, file), weights(pairs / "straight", file))
    assert torch.load(pairs / name / "previous.pt", weights_only=True)["resume"]["epoch"] == 1
    assert len(metrics(pairs / name)) == 2


@pytest.mark.parametrize("name", ["adam", "sam", "captioner"])
def test_three_stopped_processes_resume_exactly(pairs, name):
    """Of three numbers the sum depends on the order. With accumulation in SAM."""
    (ended, resumed), printed = codes(pairs, f"{name} stopped")
    assert ended == [143] * 3 and resumed == [0] * 3, printed
    assert same(weights(pairs / f"{name} stopped"), weights(pairs / f"{name} straight"))


def test_a_process_lost_before_the_first_step_is_one_line(pairs):
    (ends,), printed = codes(pairs, "lost early")
    assert ends == [3, -signal.SIGKILL] and LOST in printed and "Traceback" not in printed, printed
    assert re.search("\n  .*/gloo/.*\n", printed), "the library's reason, below"


def test_another_number_of_processes_is_refused(pairs):
    (together, alone), said = codes(pairs, "straight")
    assert together == [0, 0] and alone == [2] and "the number of processes is 1 now and was 2 before" in said


def test_a_folder_that_another_run_holds_is_refused_by_all(pairs):
    (ends,), said = codes(pairs, "in use")
    assert ends == [2, 2] and "straight is in use by another run" in said and LOST not in said, said


def test_an_error_of_one_process_ends_both_and_is_said_once(pairs):
    (ends,), said = codes(pairs, "bad")
    assert ends == [3, 2] and "another process of this run has failed: nothing was saved yet" in said, said
    assert said.count("train_in_pairs.py: not an image") == 1 and "Traceback" not in said, said
    (ends,), said = codes(pairs, "typing error")
    assert ends == [2, 2] and "--holdout" in said


@pytest.mark.parametrize("name, images", [("val", 16), ("few", 1)])
def test_two_processes_evaluate_as_one(pairs, name, images):
    assert [codes(pairs, f"eval {name} {number}")[0] for number in ("two", "one")] == [[[0, 0]], [[0]]]
    for kind in ("csv", "json"):
        content = (pairs / f"{name} two.{kind}").read_bytes()
        assert content == (pairs / f"{name} one.{kind}").read_bytes()
    assert json.loads(content)["images"] == images
    assert codes(pairs, f"eval {name} two")[1].count("accuracy ") == 1


@pytest.mark.slow
def test_torchruns_restarts_go_on_by_themselves_to_the_same_bits(pairs, tmp_path):
    """Rank 0 is killed: the other ends by itself; torchrun's store still has the addresses of both."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
               "--max-restarts", 1, ROOT / "p1_train.py", "--data", pairs / "data", "--output", output,
               *TINY, *SETTINGS, *TWO, *ADAM_SAM, "--save-every", 1, "--resume"]
    with open(log, "w") as file:
        torchrun = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file,
                                    env={**os.environ, "OMP_NUM_THREADS": "1"})
    victim, other = (process_of(torchrun, RANK=rank) for rank in (0, 1))
    while not (output / "last.pt").exists():
        assert torchrun.poll() is None, log.read_text()
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    assert torchrun.wait(timeout=120) == 0, log.read_text()
    assert f"{LOST}: --resume goes on after " in log.read_text()
    assert not any(Path(f"/proc/{process}").exists() for process in (victim, other))
    for file in ("last.pt", "best.pt"):
        assert same(weights(output, file), weights(pairs / "straight", file))


def process_of(torchrun, **variables):
    """The number of the process that torchrun started, or will, with these environment variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    while True:
        assert torchrun.poll() is None
        for process in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if wanted <= set(Path(f"/proc/{process}/environ").read_bytes().split(b"\0")):
                    return int(process)
        time.sleep(0.05)
