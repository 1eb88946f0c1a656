"""Runs that are stopped, killed or spoilt, and what they leave."""

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import images
from engine import checkpointing
from engine.seeding import ShuffledBatches
from engine.state import TrainingState
from tests.helpers.training import TRAIN, computed, metrics, same, train, weights

ROOT = Path(__file__).resolve().parents[1]


def test_killed_runs_end_bit_for_bit_like_one_left_alone():
    """Six kills each, two of them in the middle of a save; the script's docstring has the command for 25."""
    processes = [subprocess.Popen([sys.executable, "-m", "tests.helpers.kill_training", "--kills", "6", "--optimizer", "adam", *flags],
                                  cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env={**os.environ, "OMP_NUM_THREADS": "1"})  # side by side
                 for flags in ([], ["--sam", "--workers", "2"])]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "6 kills" in said and ": 0 differences" in said, said


@pytest.mark.parametrize("flags", [
    ["--optimizer", "sgd", "--sam", "--accumulate", "2", "--batch-size", "4"], ["--precision", "fp16", "--epochs", "1"],
    ["--sam", "--head-init", "probe", "--layer-decay", "0.7", "--label-smoothing", "0.1", "--mixup", "0.5", "--cutmix", "1",
     "--rand-augment", "7", "--random-erasing", "0.5", "--ema", "0.5"]])
def test_a_run_resumes_in_the_middle_of_an_epoch_with_all_that_a_model_draws(shapes, tmp_path, monkeypatch, flags):
    """The model draws from all three random streams, and each step is taken by another process, so to speak."""
    forward = torch.nn.Linear.forward

    def noisy(self, x):
        noise = random.random() + np.random.rand() + torch.rand(1).item() if self.training else 0
        return forward(self, x) * (1 + 1e-3 * noise)

    monkeypatch.setattr(torch.nn.Linear, "forward", noisy)
    settings = ["--epochs", 2, "--save-every", 1, *flags]
    assert train(shapes, tmp_path / "straight", *settings) == 0

    class Killed(BaseException):
        pass

    save = checkpointing.save_checkpoint

    def save_then_die(content, path, *previous):
        save(content, path, *previous)
        if path.name == "last.pt":
            raise Killed

    monkeypatch.setattr(checkpointing, "save_checkpoint", save_then_die)
    killed = 0
    while True:
        random.seed(killed), np.random.seed(killed), torch.manual_seed(killed)
        try:
            assert train(shapes, tmp_path / "killed", *settings, "--resume") == 0
            break
        except Killed:
            killed += 1
    assert killed > 3
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "killed", name))
    assert computed(tmp_path / "straight") == computed(tmp_path / "killed")


def test_resume_says_what_it_does(run, shapes, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    assert train(shapes, tmp_path / "run", "--epochs", 2, "--sam") == 2
    assert "--resume" in capsys.readouterr().err
    for flags, message in [(["--rho", 0.1], "--rho is 0.1 now and was 0.05 before"),
                           (["--epochs", 1], "--epochs is 1 now and was 2 before"),
                           (["--ema", 0.9], "--ema is 0.9 now and was None before"),
                           (["--deterministic"], "--deterministic is True now and was False before")]:
        assert train(shapes, tmp_path / "run", "--epochs", 3, "--sam", "--resume", *flags) == 2
        assert message in capsys.readouterr().err
    assert train(shapes, tmp_path / "run", "--epochs", 3, "--sam", "--resume", "--workers", 1, "--save-every", 2,
                 "--on-nonfinite", "skip") == 0
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == ["1", "2", "3"]
    (tmp_path / "empty").mkdir()
    assert train(shapes, tmp_path / "empty", "--epochs", 1, "--resume") == 0
    assert "holds no last.pt: starting anew" in capsys.readouterr().err


def test_resuming_a_finished_run_only_completes_what_a_kill_at_its_end_left_out(run, shapes, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    before = (run / "metrics.csv").read_text()
    for name in ("metrics.csv", "curves.png"):  # config.json comes before last.pt
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / ".last.pt-abcd_123.pt").write_bytes(b"half")
    (tmp_path / "run" / ".notes").write_text("the user's")
    assert train(shapes, tmp_path / "run", "--epochs", 2, "--sam", "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in run.iterdir()} | {".notes"}
    assert (tmp_path / "run" / "last.pt").read_bytes() == (run / "last.pt").read_bytes()


def test_an_image_that_cannot_be_read_for_a_while_costs_nothing(run, shapes, tmp_path, capsys, monkeypatch):
    """It goes missing before the second batch of the second epoch, as on a network drive."""
    data = shutil.copytree(shapes, tmp_path / "data")
    get, loaded = images.ImageDataset.__getitem__, []

    def losing_one(self, key):
        if self.seed is not None and key[0] == 1:
            loaded.append(data / "train" / self.names[key[1]])
            if len(loaded) == 9:
                loaded[-1].rename(tmp_path / "away.jpg")
        return get(self, key)

    monkeypatch.setattr(images.ImageDataset, "__getitem__", losing_one)
    assert train(data, tmp_path / "run", "--epochs", 2, "--sam") == 2
    assert f"{loaded[-1].name}: " in capsys.readouterr().err
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (saved["resume"]["epoch"], saved["resume"]["step"]) == (1, 1)
    monkeypatch.undo()
    (tmp_path / "away.jpg").rename(loaded[-1])
    assert train(data, tmp_path / "run", "--epochs", 2, "--sam", "--resume") == 0
    assert same(weights(tmp_path / "run"), weights(run))


def test_best_is_mended_after_a_kill_before_it(shapes, tmp_path, monkeypatch):
    """The scores of the epochs are given; a kill comes between last.pt and best.pt of the second one, or of the third."""
    class Killed(BaseException):
        pass

    for ema in ([], ["--ema", 0.5]):
        for killed, score_after in ((2, 0.25), (3, 0.25), (3, 0.75)):
            output = tmp_path / f"{killed} {score_after} {len(ema)}"
            scores, saves, save = iter([0.25, 0.5, 0.75]), [], checkpointing.save_checkpoint

            def dying(content, path, *previous):
                if path.name == "best.pt":
                    saves.append(None)
                    if len(saves) == killed:
                        raise Killed
                save(content, path, *previous)

            def predict(model, loader, *args):
                share = next(scores)
                logits = torch.eye(4)[[0 if i < share * 4 else 1 for i in range(4)]]
                return logits, torch.zeros(4, dtype=torch.long)

            with monkeypatch.context() as patch:
                patch.setattr(checkpointing, "save_checkpoint", dying)
                patch.setattr("engine.inference.predict", predict)
                with pytest.raises(Killed):
                    train(shapes, output, "--epochs", 3, "--holdout", 0.12, *ema)
            assert torch.load(output / "best.pt", weights_only=True)["epoch"] == killed - 1
            expected = torch.load(output / "last.pt", weights_only=True)
            (output / "metrics.csv").unlink()
            scores = iter([score_after])
            with monkeypatch.context() as patch:
                patch.setattr("engine.inference.predict", predict)
                assert train(shapes, output, "--epochs", 3, "--holdout", 0.12, "--resume", *ema) == 0
            best = torch.load(output / "best.pt", weights_only=True)
            assert best["epoch"] == (killed if killed == 3 or score_after < 0.5 else 3)
            assert len(metrics(output)) == 3
            average = expected["resume"]["average"]
            kept = {key[7:]: value for key, value in average.items() if key[:7] == "module."} if ema else expected["state_dict"]
            assert same(best["state_dict"], kept) and "resume" not in best


def test_a_best_that_is_not_the_runs_own_is_replaced(shapes, tmp_path, capsys, monkeypatch):
    """The scores of the epochs are given: the first one is the best, but best.pt is another one's."""
    scores = iter([0.75, 0.25, 0.5, 0.25])

    def predict(model, loader, *args):
        share = next(scores)
        return torch.eye(4)[[0 if i < share * 4 else 1 for i in range(4)]], torch.zeros(4, dtype=torch.long)

    monkeypatch.setattr("engine.inference.predict", predict)
    settings, best = ["--holdout", 0.12], tmp_path / "run" / "best.pt"
    assert train(shapes, tmp_path / "run", "--epochs", 2, *settings) == 0
    content = torch.load(best, weights_only=True)
    assert content["epoch"] == 1
    torch.save({**content, "epoch": 2}, best)
    assert train(shapes, tmp_path / "run", "--epochs", 4, *settings, "--resume") == 0
    said = capsys.readouterr()
    assert "best.pt is not that of epoch 1, the best so far" in said.err
    assert torch.load(best, weights_only=True)["epoch"] == 3 and "best.pt holds epoch 3, accuracy 0.500" in said.out


def test_other_images_are_refused(shapes, tmp_path, capsys):
    data = shutil.copytree(shapes, tmp_path / "data")
    assert train(data, tmp_path / "grown", "--epochs", 1) == 0
    shutil.copy(data / "train" / "0_0.jpg", data / "train" / "0_99.jpg")
    assert train(data, tmp_path / "grown", "--epochs", 2, "--resume") == 2
    assert "holds other images" in capsys.readouterr().err


# Damaged and unwritable files --------------------------------------------------------------------------------------


def offset_of_weights(path):
    """Where in a checkpoint's file the bytes of its patch embedding lie."""
    values = weights(path.parent, path.name)["patch_embed.proj.weight"].numpy().tobytes()
    return path.read_bytes().index(values)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[offset_of_weights(path) + 1001] ^= 0x10  # a bit of a mantissa: torch.load takes it
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_refused_by_name_with_the_older_one_that_helps(run, shapes, tmp_path, capsys, damage):
    resume = ["--epochs", 3, "--sam", "--resume"]
    folder = shutil.copytree(run, tmp_path / "run")
    damage(folder / "last.pt")
    assert train(shapes, folder, *resume) == 2
    message = capsys.readouterr().err
    assert f"{folder}/last.pt is damaged" in message
    assert f"remove it, and --resume goes on from {folder}/previous.pt, which is whole (after epoch 1)" in message
    (folder / "last.pt").unlink()
    assert train(shapes, folder, "--epochs", 2, "--sam", "--resume") == 0
    assert same(weights(folder), weights(run)), "as if nothing had happened"

    damage(folder / "last.pt")
    damage(folder / "previous.pt")
    assert train(shapes, folder, *resume) == 2
    assert f"start a new run, from the weights in {folder}/best.pt if you like" in capsys.readouterr().err


def test_every_flipped_byte_that_matters_is_found(run, tmp_path):
    """At 60 places all over the file: it is refused, or what it holds is unchanged (names and padding of the archive)."""
    path = tmp_path / "last.pt"
    whole = (run / "last.pt").read_bytes()
    expected, refused = weights(run), 0
    for place in np.random.default_rng(0).integers(len(whole), size=60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1:])
        try:
            assert same(checkpointing.read_tensors(path)["state_dict"], expected)
        except checkpointing.BadInput:
            refused += 1
    assert refused > 40


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(run, shapes, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    before = (folder / "last.pt").read_bytes()

    def full(content, file):
        file.write(b"x" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert train(shapes, folder, "--epochs", 3, "--sam", "--resume") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {folder}/last.pt cannot be saved: No space left on device; {folder}/last.pt is whole")
    assert (folder / "last.pt").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    assert train(shapes, folder, "--epochs", 3, "--sam", "--resume") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("free", [2_000_000, 100_000, 0])  # bytes: enough for a part of last.pt, for curves.png, for nothing
def test_a_disk_that_is_really_full(run, shapes, tmp_path, capsys, free):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        shutil.copytree(run, disk / "run")
        with open(disk / "filler", "wb", buffering=0) as filler:
            filler.write(bytes(max(0, shutil.disk_usage(disk).free - free)))
        before = (disk / "run" / "last.pt").read_bytes()
        assert train(shapes, disk / "run", "--epochs", 3, "--sam", "--resume") == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ") and "No space left on device" in message and str(disk / "run") in message
        if free:
            assert f"{disk}/run/last.pt cannot be saved: No space left on device; {disk}/run/last.pt is whole" in message
        assert (disk / "run" / "last.pt").read_bytes() == before and checkpointing.find_run(disk / "run", resume=True)
        assert not list((disk / "run").glob(".*"))
    finally:
        subprocess.run(["umount", disk], check=True)


# Signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(run, shapes, tmp_path, capfd, monkeypatch, number, code):
    finish = TrainingState.count_step

    def interrupt(self, *args):
        if (self.epoch, self.step) == (1, 1):
            os.kill(os.getpid(), number)
        finish(self, *args)

    monkeypatch.setattr(TrainingState, "count_step", interrupt)
    settings = ["--epochs", 2, "--sam"]
    assert train(shapes, tmp_path / "run", *settings) == code
    error = capfd.readouterr().err
    assert f"note: {number.name}: finishing the step" in error
    assert f"stopped by {number.name} after step 2 of epoch 2: --resume goes on from {tmp_path}/run/last.pt" in error
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert train(shapes, tmp_path / "run", *settings, "--resume") == 0
    assert same(weights(tmp_path / "run"), weights(run)) and same(weights(tmp_path / "run", "best.pt"), weights(run, "best.pt"))


def test_a_signal_cuts_the_evaluation_short(shapes, tmp_path, monkeypatch):
    """6 images are held out, one a batch; the signal comes with the second one."""
    settings = ["--epochs", 1, "--holdout", 0.2, "--batch-size", 1]
    assert train(shapes, tmp_path / "straight", *settings) == 0
    get, evaluated = images.ImageDataset.__getitem__, []

    def interrupting(self, key):
        if self.seed is None:
            evaluated.append(key)
            if len(evaluated) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return get(self, key)

    monkeypatch.setattr(images.ImageDataset, "__getitem__", interrupting)
    assert train(shapes, tmp_path / "run", *settings) == 143
    assert len(evaluated) == 2 and not (tmp_path / "run" / "metrics.csv").exists()
    assert train(shapes, tmp_path / "run", *settings, "--resume") == 0
    assert len(evaluated) == 2 + 6
    assert same(weights(tmp_path / "run", "best.pt"), weights(tmp_path / "straight", "best.pt"))


def training_process(data, output, *arguments):
    command = [sys.executable, ROOT / "p1_train.py", "--data", data, "--output", output, *TRAIN, "--epochs", 1000, *arguments]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (output / "last.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_a_signal_to_the_whole_group_of_processes_leaves_the_loaders_alive_until_the_save(shapes, tmp_path):
    process = training_process(shapes, tmp_path / "run", "--workers", 2)
    workers = children(process)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by SIGINT after" in error and "Traceback" not in error, error
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_second_signal_stops_at_once(shapes, tmp_path):
    """The step in work is made to last for minutes."""
    code = (f"import sys, time, p1_train, engine.state as s; s.TrainingState.count_step = lambda *a: time.sleep(600)\n"
            f"sys.exit(p1_train.main({[*TRAIN, '--data', str(shapes), '--output', str(tmp_path / 'run')]}))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "images to train on" in process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM  # which a shell calls 143


# Losses that are not finite ----------------------------------------------------------------------------------------


@pytest.fixture
def bad_batch(monkeypatch):
    """A function that makes the loss of the image with the given name NaN."""
    def spoil(name):
        get = images.ImageDataset.__getitem__

        def with_nan(self, key):
            image, target = get(self, key)
            return (image * math.nan if self.seed is not None and self.names[key[1]] == name else image), target

        monkeypatch.setattr(images.ImageDataset, "__getitem__", with_nan)
    return spoil


def image_of_step(shapes, step):
    """The name of an image that a run of 8 a batch and the seed 0 takes in this step of its first epoch."""
    folder = images.read_training_folder(shapes / "train", shapes / "classes.txt")
    fit = folder.keep(images.stratified_holdout(folder.targets, 0.1, 0)[0])
    return fit.names[ShuffledBatches(len(fit.names), 8, 0).order()[8 * (step - 1) + 1]]


def test_a_loss_that_is_not_finite_in_the_first_step_leaves_nothing(shapes, tmp_path, capsys, bad_batch):
    bad_batch(image_of_step(shapes, 1))
    assert train(shapes, tmp_path / "run", "--epochs", 1) == 3
    message = capsys.readouterr().err
    assert "error: the loss is not finite in step 1 of epoch 1: no good state was saved before it" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--optimizer", "sgd"], ["--optimizer", "sgd", "--sam"], ["--precision", "fp16"]])
def test_a_loss_that_is_not_finite_stops_with_the_state_before_it_and_may_be_skipped(shapes, tmp_path, capsys, bad_batch, flags):
    settings, bad = ["--epochs", 2, *flags], image_of_step(shapes, 3)
    bad_batch(bad)
    assert train(shapes, tmp_path / "run", *settings) == 3
    message, *names = capsys.readouterr().err.splitlines()[-9:]
    assert message.startswith("error: the loss is not finite in step 3 of epoch 1: the last good state, after step 2 of "
                              f"epoch 1, is in {tmp_path}/run/last.pt")
    assert f"  {bad}" in names and len(names) == 8, "the batch"
    stopped = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert stopped["resume"]["step"] == 2 and not (tmp_path / "run" / "previous.pt").exists()
    assert train(shapes, tmp_path / "run", *settings, "--resume") == 3, "the same batch again"
    assert not (tmp_path / "run" / "previous.pt").exists(), "the same state is not saved twice"
    assert train(shapes, tmp_path / "run", *settings, "--resume", "--on-nonfinite", "skip") == 0
    rows = metrics(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == ["1", "1"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows) and bad in capsys.readouterr().err
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_weights_that_are_not_finite_are_not_saved(run, shapes, tmp_path, capsys, monkeypatch):
    step = torch.optim.SGD.step
    steps = []

    def spoil(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(None)
        if len(steps) == spoilt_step:
            self.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    for spoilt_step in (8, 7):  # the last step of the second epoch; the one before
        steps.clear()
        output = tmp_path / f"spoilt {spoilt_step}"
        assert train(shapes, output, "--epochs", 3, "--optimizer", "sgd", "--on-nonfinite", "skip") == 3
        message = capsys.readouterr().err
        assert f"the weights are not finite after step {spoilt_step - 4} of epoch 2: the last good state, after epoch 1" in message
        saved = torch.load(output / "last.pt", weights_only=True)
        assert saved["resume"]["epoch"] == 1 and all(value.isfinite().all() for value in saved["state_dict"].values())
        assert all(value.isfinite().all() for value in weights(output, "best.pt").values())
    monkeypatch.undo()

    torch.save({key: value * 1e30 for key, value in weights(run).items()}, tmp_path / "huge.pt")
    from p1_train import main
    arguments = ["--data", str(shapes), "--output", str(tmp_path / "nan"), "--weights", str(tmp_path / "huge.pt")]
    assert main([*arguments, *[flag for flag in TRAIN if flag != "--scratch"]]) == 3
    assert "no good state was saved" in capsys.readouterr().err and not (tmp_path / "nan").exists()


# The averaged weights ----------------------------------------------------------------------------------------------


def test_averaged_weights_follow_their_equation_and_are_what_is_kept(shapes, tmp_path, monkeypatch):
    """Against the weights after each of the steps, averaged here in float64."""
    after = []
    count = TrainingState.count_step

    def recording(self, *args):
        after.append({key: value.double().clone() for key, value in self.model.state_dict().items()})
        count(self, *args)

    monkeypatch.setattr(TrainingState, "count_step", recording)
    assert train(shapes, tmp_path / "run", "--epochs", 2, "--holdout", 0, "--ema", 0.7, "--optimizer", "adam") == 0
    average = after[0]
    for values in after[1:]:
        average = {key: 0.7 * average[key] + 0.3 * values[key] for key in values}
    best, last = weights(tmp_path / "run", "best.pt"), weights(tmp_path / "run")
    assert len(after) == 8 and max((best[key] - average[key]).abs().max().item() for key in best) < 1e-6
    assert all(torch.equal(last[key].double(), after[-1][key]) for key in last), "last.pt keeps the raw ones"
    assert not same(best, last)


# On a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_same_bits_when_asked_and_resumes_exactly(shapes, tmp_path, monkeypatch, precision):
    settings = ["--device", "cuda", "--deterministic", "--epochs", 2, "--sam", "--precision", precision, "--save-every", 1]
    try:
        for name in ("one", "other"):
            assert train(shapes, tmp_path / name, *settings) == 0
        assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))

        count = TrainingState.count_step

        def interrupt(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)
            count(self, *args)

        monkeypatch.setattr(TrainingState, "count_step", interrupt)
        while (code := train(shapes, tmp_path / "stopped", *settings, "--resume")) == 143:
            pass
        assert code == 0 and same(weights(tmp_path / "one"), weights(tmp_path / "stopped"))
    finally:
        torch.use_deterministic_algorithms(False)
