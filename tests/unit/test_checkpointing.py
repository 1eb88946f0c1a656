"""What a run folder holds, and what is made of it when it is damaged, full or of an older version."""

import errno
import json
import os

import numpy as np
import pytest
import torch

import p1_train
from common.errors import BadInput
from engine import checkpointing
from engine.checkpointing import check_settings, find_run
from engine.flags import current_settings
from tests.helpers.linear import Training
from tests.helpers.training import computed, same, weights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """A finished run of two epochs."""
    return Training(tmp_path / "run").run().args.output


# Damaged and unwritable files -------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    """A bit of a mantissa among the weights: torch.load takes it."""
    content = bytearray(path.read_bytes())
    values = weights(path.parent, path.name)["0.weight"].numpy().tobytes()
    content[content.index(values) + 5] ^= 0x10
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_refused_by_name_with_the_older_one_that_helps(folder, damage):
    finished, rows = weights(folder), computed(folder)
    damage(folder / "last.pt")
    with pytest.raises(BadInput) as error:
        find_run(folder, resume=True)
    assert f"{folder}/last.pt is damaged" in str(error.value)
    assert (f"remove it, and --resume goes on from {folder}/previous.pt, which is whole (after epoch 1)"
            in str(error.value))
    (folder / "last.pt").unlink()
    Training(folder).run()
    assert same(weights(folder), finished) and computed(folder) == rows, "as if nothing had happened"
    damage(folder / "last.pt")
    damage(folder / "previous.pt")
    with pytest.raises(BadInput, match=f"start a new run, from the weights in {folder}/best.pt if you like"):
        find_run(folder, resume=True)
    (folder / "best.pt").unlink()
    with pytest.raises(BadInput, match="start a new run$"):
        find_run(folder, resume=True)


def test_every_flipped_byte_that_matters_is_found(folder, tmp_path):
    """At 60 places all over the file: it is refused, or what it holds is unchanged (names and padding)."""
    path = tmp_path / "last.pt"
    whole = (folder / "last.pt").read_bytes()
    expected, refused = weights(folder), 0
    for place in np.random.default_rng(0).integers(len(whole), size=60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1:])
        try:
            assert same(checkpointing.read_tensors(path)["state_dict"], expected)
        except BadInput:
            refused += 1
    assert refused > 20


def test_a_folder_with_a_checkpoint_is_a_run_and_others_are_not(folder, tmp_path):
    for name in ("previous.pt", "best.pt", "last.pt"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).write_bytes((folder / name).read_bytes())
        with pytest.raises(BadInput, match="holds a run already: pass --resume to go on"):
            find_run(tmp_path / name[:4], resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.csv").write_text("epoch\n")
    assert find_run(tmp_path / "other", resume=False) is None
    assert find_run(tmp_path / "new", resume=True) is None
    epoch = find_run(tmp_path / "prev", resume=True)["resume"]["epoch"]
    assert epoch == 1, "a kill between two renames left it alone"
    torch.save({"state_dict": {}}, tmp_path / "prev" / "previous.pt")
    with pytest.raises(BadInput, match="is not a checkpoint that training can go on from"):
        find_run(tmp_path / "prev", resume=True)
    with pytest.raises(BadInput, match="last.pt is a file: name a folder"):
        find_run(folder / "last.pt", resume=False)


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(folder, monkeypatch):
    before = (folder / "last.pt").read_bytes()

    def full(content, file):
        file.write(b"x" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    training = Training(folder, epochs=3)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match=f"^{folder}/last.pt cannot be saved: No space left on device; "
                                       f"{folder}/last.pt is whole: make room, and --resume goes on from "
                                       "there$"):
        training.run()
    assert (folder / "last.pt").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    Training(folder, epochs=3).run()


@pytest.mark.parametrize("epoch, place", [(2, "the last good state, after epoch 1, is in {}/last.pt"),
                                          (1, "no good state was saved before it")])
def test_a_full_gpu_is_one_line_that_says_what_is_saved(tmp_path, epoch, place):
    training = Training(tmp_path, epochs=2)
    take_step = training.take_step

    def fill(*args):
        if training.state.epoch == epoch - 1 and training.state.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return take_step(*args)

    training.take_step = fill
    words = f"the GPU's memory is full: .*--precision bf16.*; {place.format(tmp_path)}$"
    with pytest.raises(BadInput, match=words):
        training.run()
    assert (tmp_path / "last.pt").exists() is (epoch == 2)


def test_half_written_files_are_removed_and_the_users_are_not(folder):
    (folder / ".last.pt-abcd_123.pt").write_bytes(b"half")
    (folder / ".notes").write_text("the user's")
    checkpointing.remove_half_written(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".notes"]


# Settings ---------------------------------------------------------------------------------------------


def default(name):
    return p1_train.get_args_parser().get_default(name)


NOW = {"rho": 0.05, "epochs": 3, "head_init": "random", "sync_perturbation": False, "seed": 0, "workers": 2,
       "processes": 1}


@pytest.mark.parametrize("before, refused", [
    ({}, None), ({"epochs": 2}, None), ({"workers": 8}, None), ({"cache": 1.0}, None),
    ({"epochs": 4}, "--epochs is 3 now and was 4 before"),
    ({"rho": 0.1}, "--rho is 0.05 now and was 0.1 before"),
    ({"seed": 1}, "--seed is 0 now and was 1 before"),
    ({"processes": 4}, "the number of processes is 1 now and was 4 before"),
    ({"climb": "process"}, None),
    ({"climb": "joint"}, "--sync-perturbation is False now and was True before"),
    ({"climb": "micro-batch"},
     "--climb was micro-batch before, which this version does not have: start a new run"),
    ({"head_init": "probe"}, "--head-init is random now and was probe before")])
def test_a_run_goes_on_with_the_settings_it_began_with(before, refused):
    saved = {**NOW, **before}
    if "climb" in before:
        del saved["sync_perturbation"]
    if refused is None:
        return check_settings(NOW, saved, default)
    with pytest.raises(BadInput) as error:
        check_settings(NOW, saved, default)
    assert f"--resume: {refused}" in str(error.value)


def test_a_flag_that_an_older_version_did_not_have_counts_as_its_default():
    saved = {name: value for name, value in NOW.items() if name not in ("head_init", "sync_perturbation")}
    check_settings(NOW, saved, default)
    with pytest.raises(BadInput, match="--head-init is probe now and was random before"):
        check_settings({**NOW, "head_init": "probe"}, saved, default)


def test_settings_of_older_versions_come_under_todays_names():
    assert current_settings({"climb": "joint", "cache": 1, "lr": 1}) == {"sync_perturbation": True, "lr": 1}
    assert current_settings({"climb": "process"}) == {"sync_perturbation": False}
    assert current_settings({"climb": "micro-batch"}) == {"climb": "micro-batch"}
    assert current_settings({"sync_perturbation": True}) == {"sync_perturbation": True}


def test_config_names_versions_command_and_commit_where_there_is_one(monkeypatch, tmp_path):
    config = json.loads(checkpointing.describe_run({"lr": 1}, {"model": {"depth": 2}}, CPU))
    assert "gpu" not in config
    assert config["settings"] == {"lr": 1} and config["model"] == {"depth": 2} and config["command"]
    assert set(config["versions"]) == {"python", *checkpointing.PACKAGES}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(checkpointing, "describe_gpu", lambda device: {"gpu": {"name": str(device)}})
    config = json.loads(checkpointing.describe_run({}, {}, CPU))
    assert config["git_commit"] is None and config["gpu"] == {"name": "cpu"}
