"""Runs that are killed, stopped and resumed as processes, and the run folders of an older version."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import p1_train
from datasets import images
from engine import checkpointing
from engine.seeding import ShuffledBatches
from engine.state import TrainingState
from tests.helpers import forked, kill_training
from tests.helpers.linear import Training
from tests.helpers.training import TRAIN, Killed, die_after_saves, metrics, same, train, weights


def test_killed_runs_end_bit_for_bit_like_one_left_alone(tmp_path):
    """Three kills, one of them in the middle of a save; the helper's docstring has the commands for 25."""
    command = ["--kills", "3", "--epochs", "2", "--optimizer", "adam", "--sam", "--workers", "2"]
    process = forked.fresh(kill_training.main, command, log=tmp_path / "log")
    process.join(timeout=300)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and "3 kills" in said and ": 0 differences" in said, said


def test_a_run_goes_on_to_more_epochs_and_a_finished_one_is_only_completed(run, shapes, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    for name in ("metrics.csv", "curves.png"):  # config.json comes before last.pt
        (folder / name).unlink()
    assert train(shapes, folder, "--epochs", 2, "--sam", "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "curves.png"} == {
        path.name: path.read_bytes() for path in run.iterdir() if path.name != "curves.png"}
    assert (folder / "curves.png").exists()
    assert train(shapes, folder, "--epochs", 3, "--sam", "--resume", "--rho", 0.1) == 2
    assert "--rho is 0.1 now and was 0.05 before" in capsys.readouterr().err
    assert train(shapes, folder, "--epochs", 3, "--sam", "--resume", "--workers", 1, "--save-every", 2,
                 "--on-nonfinite", "skip") == 0
    assert [row["epoch"] for row in metrics(folder)] == ["1", "2", "3"]


def saved_run(output):
    return torch.load(output / "last.pt", weights_only=True)


def test_the_images_decide_whether_a_run_goes_on_not_their_folder(stopped, shapes, run, tmp_path, capsys):
    """They have moved; one is added, or another of the same name that decodes as well."""
    flags = "--epochs", 2, "--sam", "--sync-perturbation", "--resume"
    data = shutil.copytree(shapes, tmp_path / "moved")
    photo, other = data / "train" / "0_0.jpg", data / "train" / "1_0.jpg"
    before = photo.read_bytes(), (stopped / "last.pt").read_bytes()
    for name, change in (("0_99.jpg", lambda: shutil.copy(photo, data / "train" / "0_99.jpg")),
                         ("0_0.jpg", lambda: shutil.copy(other, photo))):
        change()
        for more in ([], ["--skip-bad"]):
            assert train(data, stopped, *flags, *more) == 2
            assert f"holds other images than when the run began, such as {name}" in capsys.readouterr().err
        (data / "train" / "0_99.jpg").unlink(missing_ok=True)
    photo.write_bytes(before[0])
    assert (stopped / "last.pt").read_bytes() == before[1] and not (stopped / ".lock").exists()
    assert train(data, stopped, *flags) == 0
    assert same(weights(stopped), weights(run))
    assert json.loads((stopped / "config.json").read_text())["settings"]["data"] == str(shapes)


def test_a_second_run_into_a_folder_is_refused_before_it_changes_anything(shapes, tmp_path, capsys):
    output = tmp_path / "run"
    process, _ = training_process(shapes, output, "--sam")
    os.kill(process.pid, signal.SIGSTOP)
    names = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    second = train(shapes, output, "--sam", "--epochs", 1000, "--resume")
    process.kill()
    process.join()
    error, = capsys.readouterr().err.splitlines()
    assert second == 2 and "is in use by another run: wait for its end, or name another folder" in error
    assert ".lock" in names and names == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}


@pytest.mark.parametrize("photo_was", ["trained on", "held out"])
def test_a_photo_that_has_become_bad_leaves_its_place_empty(shapes, run, tmp_path, capsys, monkeypatch,
                                                            photo_was):
    """In the middle of the second epoch; nothing is seen twice, and what was held out stays so."""
    data, output = shutil.copytree(shapes, tmp_path / "data"), tmp_path / "run"
    seen, get = [], images.ImageDataset.__getitem__
    names = images.list_files(data / "train")
    folder = images.read_training_folder(data / "train", data / "classes.txt")
    fit, held_out = ([names[i] for i in part] for part in images.stratified_holdout(folder.targets, 0.1, 0))
    order = ShuffledBatches(len(fit), 8, 0)
    order.epoch = 1
    places = [fit[i] for i in order.order()]
    victim = places[12] if photo_was == "trained on" else held_out[0]

    def noting(self, key):
        if self.seed is not None and key[0] == 1 and key[1] < len(fit):
            seen.append(self.names[key[1]])
            if len(seen) == 9:
                (data / "train" / victim).write_bytes(b"gone bad")
        return get(self, key)

    monkeypatch.setattr(images.ImageDataset, "__getitem__", noting)
    flags = ["--epochs", 2, "--sam", "--resume"]
    assert train(data, output, *flags) == 2
    message = capsys.readouterr().err
    assert victim in message and "pass --resume --skip-bad to go on without" in message
    position = saved_run(output)["resume"]["step"]
    assert position == (1 if photo_was == "trained on" else 4)
    assert train(data, output, *flags) == 2, "a resume says so again"
    assert "1 file of 32" in capsys.readouterr().err
    del seen[8 * position:]
    assert train(data, output, *flags, "--skip-bad") == 0
    assert f"left out 1 bad file: {victim}" in capsys.readouterr().err
    assert seen == [name for name in places if name != victim], "each once, in the order of the beginning"
    assert not set(held_out) & set(seen)
    photos = saved_run(output)["resume"]["photos"]
    assert list(photos["left_out"]) == [victim] and list(photos["sizes"]) == names
    assert train(data, output, "--epochs", 3, "--sam", "--resume") == 0, "what is left out stays so"


def test_the_state_says_what_a_run_began_without_and_a_resume_does_not_look_again(
        shapes, tmp_path, monkeypatch):
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "train" / "0_0.jpg").write_bytes(b"x")
    (data / "train" / "notes.txt").touch()
    assert train(data, tmp_path / "run", "--epochs", 1, "--skip-bad") == 0
    photos = saved_run(tmp_path / "run")["resume"]["photos"]
    assert photos["left_out"] == {"notes.txt": "has no label: name it {class}_{id}.ext",
                                  "0_0.jpg": "not an image"}
    tried = []
    monkeypatch.setattr("engine.photos.undecodable", lambda root, names, progress: tried.extend(names) or {})
    assert train(data, tmp_path / "run", "--epochs", 2, "--resume") == 0 and tried == []
    assert train(data, tmp_path / "run", "--epochs", 3, "--resume", "--skip-bad") == 0 and len(tried) == 31


@pytest.fixture
def stopped(shapes, tmp_path, monkeypatch):
    """A run of SAM with --sync-perturbation that was stopped after step 1 of its second epoch."""
    with monkeypatch.context() as patch:
        die_after_saves(patch, 6)  # four steps and the end of an epoch come before
        with pytest.raises(Killed):
            train(shapes, tmp_path / "run", "--epochs", 2, "--sam", "--sync-perturbation", "--save-every", 1)
    return tmp_path / "run"


def as_written_by_the_older_version(folder, climb):
    """Reduce last.pt to what version 0.1 wrote: its flags, and none that came later."""
    saved = torch.load(folder / "last.pt", weights_only=True)
    assert saved["settings"].pop("sync_perturbation") is True and saved["resume"]["step"] == 1
    saved["settings"].update(climb=climb, cache=0)
    del saved["resume"]["photos"]
    assert set(saved) == {"format", "arch", "labels", "class_names", "preprocessing", "settings",
                          "state_dict", "resume"}
    assert set(saved["resume"]) == {"images", "about", "epoch", "step", "totals", "history", "best",
                                    "best_epoch", "optimizer", "scaler", "average"}
    torch.save(saved, folder / "last.pt")


def test_a_run_folder_of_the_older_version_resumes_bit_for_bit(shapes, run, stopped, capsys):
    """`run` is the same setting left alone; on one rank --sync-perturbation changes nothing."""
    as_written_by_the_older_version(stopped, "joint")
    flags = ["--epochs", 2, "--sam", "--resume"]
    assert train(shapes, stopped, *flags) == 2
    assert "--sync-perturbation is False now and was True before" in capsys.readouterr().err
    assert train(shapes, stopped, *flags, "--sync-perturbation") == 0
    for name in ("last.pt", "best.pt"):
        assert same(weights(stopped, name), weights(run, name))
    assert torch.load(stopped / "last.pt", weights_only=True)["settings"]["sync_perturbation"] is True


def test_a_setting_that_can_no_longer_be_had_is_refused_by_name(shapes, stopped, capsys):
    as_written_by_the_older_version(stopped, "micro-batch")
    assert train(shapes, stopped, "--epochs", 2, "--sam", "--resume") == 2
    message = "error: --resume: --climb was micro-batch before, which this version does not have"
    assert message in capsys.readouterr().err


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
# In bytes: enough for a part of last.pt, for config.json, for nothing.
@pytest.mark.parametrize("free", [6_000, 1_000, 0])
def test_a_disk_that_is_really_full(tmp_path, free):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        Training(disk / "run").run()
        training = Training(disk / "run", epochs=3)
        with open(disk / "filler", "wb", buffering=0) as filler:
            filler.write(bytes(max(0, shutil.disk_usage(disk).free // 4096 * 4096 - free // 4096 * 4096)))
        before = (disk / "run" / "last.pt").read_bytes()
        with pytest.raises((checkpointing.BadInput, OSError)) as error:
            training.run()
        assert "No space left on device" in str(error.value) and str(disk / "run") in str(error.value)
        assert (disk / "run" / "last.pt").read_bytes() == before
        assert checkpointing.find_run(disk / "run", resume=True) and not list((disk / "run").glob(".*"))
    finally:
        subprocess.run(["umount", disk], check=True)


# Signals ----------------------------------------------------------------------------------------------


def training_process(data, output, *arguments):
    """A process of p1_train.py that has saved, and the file of what it prints."""
    command = ["--data", data, "--output", output, *TRAIN, "--epochs", 1000, *arguments]
    log = output.with_suffix(".log")
    process = forked.fresh(p1_train.main, list(map(str, command)), log=log)
    while not (output / "last.pt").exists():
        assert process.exitcode is None, log.read_text()
        time.sleep(0.05)
    return process, log


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_a_signal_to_the_whole_group_of_processes_leaves_the_loaders_alive_until_the_save(shapes, tmp_path):
    process, log = training_process(shapes, tmp_path / "run", "--workers", 2)
    workers = children(process)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    process.join(timeout=60)
    error = log.read_text()
    assert process.exitcode == 130, error
    assert "stopped by SIGINT after" in error and "Traceback" not in error, error
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_second_signal_stops_at_once(shapes, tmp_path):
    """The step in work is made to last for minutes."""
    process = forked.fresh(train_for_minutes, shapes, tmp_path / "run", log=tmp_path / "log")
    while not (tmp_path / "in a step").exists():
        assert process.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    process.terminate()
    process.join(timeout=2)
    assert process.exitcode is None
    process.terminate()
    process.join(timeout=5)
    assert process.exitcode == -signal.SIGTERM  # which a shell calls 143


def train_for_minutes(data, output):
    def step(self, *sums):
        (output.parent / "in a step").touch()
        time.sleep(600)

    TrainingState.count_step = step
    return train(data, output)

