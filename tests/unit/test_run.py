"""Opening a training run, which changes nothing, and starting it."""

import random
import shutil

import pytest
import torch
import torch.distributed as dist

import p1_train
from common.errors import BadInput
from engine import device, distributed
from engine.photos import Photos
from engine.run import Run
from tests.helpers.linear import NAMES, Training


def args(output, *flags):
    return p1_train.parse_args(["--data", "demo", "--output", str(output), "--device", "cpu", *flags])


def open_run(output, *flags):
    return Run(args(output, *flags), p1_train.get_args_parser().get_default)


@pytest.fixture
def folder(tmp_path):
    """A run that was killed in the second epoch, before its metrics were written; half a file lies there."""
    output = tmp_path / "run"
    parsed = vars(args(output, "--epochs", "3", "--optimizer", "sgd", "--lr", "0.1"))
    settings = {name: str(value) if name == "output" else value for name, value in parsed.items()}
    training = Training(output, epochs=1, optimizer="sgd")
    training.state.settings = {**settings, "processes": 1}
    training.run()
    shutil.rmtree(output / "curves.png", ignore_errors=True)
    (output / "metrics.csv").unlink()
    (output / ".last.pt-abcd_123.pt").write_bytes(b"half")
    return output


FLAGS = ["--epochs", "3", "--optimizer", "sgd", "--lr", "0.1", "--resume"]


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_opening_a_run_changes_nothing(folder, capfd):
    before, streams = files(folder), (random.getstate(), torch.get_rng_state())
    run = open_run(folder, *FLAGS)
    assert run.saved["resume"]["epoch"] == 1 and not run.finished and run.is_main
    assert files(folder) == before and capfd.readouterr() == ("", "")
    assert random.getstate() == streams[0] and torch.equal(torch.get_rng_state(), streams[1])
    assert not dist.is_initialized() and not torch.are_deterministic_algorithms_enabled()
    assert open_run(folder, *FLAGS, "--epochs", "3").settings["processes"] == 1


def restored(output, *flags, photos=None):
    """A run that was opened, started and brought to its state, and its Saver."""
    run = open_run(output, *flags)
    run.start()
    run.photos = photos or Photos(dict.fromkeys(NAMES, 1), {})
    return run, run.restore(Training(output.with_name("state"), optimizer="sgd").state, {"format": 1})


def test_restoring_it_completes_what_a_kill_left_out(folder):
    before = files(folder)
    open_run(folder, *FLAGS).start()
    assert files(folder) == before and not dist.is_initialized(), "alone it needs no group"
    _, saver = restored(folder, *FLAGS)
    assert (folder / "metrics.csv").exists() and not (folder / ".last.pt-abcd_123.pt").exists()
    assert saver.state.epoch == 1 and (folder / ".lock").exists()
    saver.release()
    assert not (folder / ".lock").exists()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start():
    with pytest.raises(OSError):
        open_run("/proc/runs/one").start()


def test_half_a_cluster_s_variables_are_refused(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(BadInput, match="not MASTER_ADDR and MASTER_PORT: start with torchrun, or unset RANK"):
        open_run(tmp_path / "run").start()


def test_a_finished_run_is_completed_and_says_so(folder, capsys):
    saved = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**saved, "settings": {**saved["settings"], "epochs": 1}}, folder / "last.pt")
    run = open_run(folder, *FLAGS, "--epochs", "1")
    assert run.finished and not (folder / "metrics.csv").exists()
    run.finish()
    assert "is finished: 1 epochs. Raise --epochs to train on." in capsys.readouterr().out
    assert {"metrics.csv", "curves.png"} <= set(files(folder))
    assert not (folder / ".last.pt-abcd_123.pt").exists()


def test_a_new_run_starts_anew_and_says_so_where_a_resume_was_asked_for(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run = open_run(tmp_path / "empty", "--resume")
    assert run.saved is None and not capsys.readouterr().err
    run.start()
    assert "empty holds no last.pt: starting anew" in capsys.readouterr().err
    first = torch.rand(1)
    open_run(tmp_path / "empty", "--resume").start()
    assert torch.equal(torch.rand(1), first), "the streams start from the seed"


def test_a_run_that_another_one_went_ahead_of_is_refused(folder, tmp_path):
    """Both were opened before either had the lock; the other has saved and ended since."""
    for output, flags in ((folder, FLAGS), (tmp_path / "new", FLAGS[:-1])):
        run = open_run(output, *flags)
        run.photos = Photos({}, {})
        Training(output, epochs=2, optimizer="sgd").run()
        before = files(output)
        with pytest.raises(BadInput, match="another run has saved there meanwhile: start again"):
            run.restore(Training(tmp_path / "state").state, {})
        assert files(output) == before


def test_a_resume_keeps_the_record_of_what_the_run_began_from(folder):
    run = open_run(folder, *FLAGS, "--data", "elsewhere/demo", "--weights", "moved.safetensors")
    assert run.settings["data"] == "demo" and run.settings["weights"] is None
    assert open_run(folder.with_name("new"), "--data", "elsewhere").settings["data"] == "elsewhere"


def test_a_run_is_not_overwritten_and_other_settings_or_images_are_refused(folder):
    with pytest.raises(BadInput, match="holds a run already: pass --resume"):
        open_run(folder)
    with pytest.raises(BadInput, match="--lr is 0.2 now and was 0.1 before"):
        open_run(folder, *FLAGS, "--lr", "0.2")
    run = open_run(folder, *FLAGS)
    run.check_images("fingerprint", folder)
    with pytest.raises(BadInput,
                       match="holds other images, or captions, than when the run began: start a new run"):
        run.check_images("another", folder)


@pytest.fixture
def instructions(monkeypatch):
    """instructions(whether) gives the processor such for bf16, or takes them away."""
    def give(whether):
        monkeypatch.setattr(device, "BF16_INSTRUCTIONS", ["is_available"] if whether else [])

    return give


def test_a_precision_is_called_slow_where_the_processor_has_no_instructions_for_it(
        tmp_path, capsys, instructions):
    for has in (False, True):
        instructions(has)
        open_run(tmp_path / "run", "--precision", "bf16").start()
        assert ("--precision fp32 is many times faster than bf16" in capsys.readouterr().err) is not has


def test_auto_is_what_the_processor_has_instructions_for_and_a_resume_keeps_it(
        tmp_path, capsys, instructions):
    for has, precision in ((True, "bf16"), (False, "fp32")):
        output = tmp_path / precision
        instructions(has)
        run = open_run(output, "--epochs", "3", "--optimizer", "sgd", "--lr", "0.1")
        run.start()
        assert run.args.precision == run.settings["precision"] == precision
        training = Training(output, epochs=1, optimizer="sgd")
        training.state.settings = run.settings
        training.run()
        instructions(not has)
        capsys.readouterr()
        again = open_run(output, *FLAGS)
        again.start()
        assert again.args.precision == again.settings["precision"] == precision
        assert ("note: --precision fp32 is many times faster" in capsys.readouterr().err) is has
        with pytest.raises(BadInput, match=f"--precision is fp16 now and was {precision} before"):
            open_run(output, *FLAGS, "--precision", "fp16")


def test_all_ranks_take_the_precision_of_the_first(tmp_path, instructions, monkeypatch):
    instructions(False)
    monkeypatch.setattr(distributed, "all_gather", lambda value: ["bf16", value])
    run = open_run(tmp_path / "run")
    run.start()
    assert run.args.precision == run.settings["precision"] == "bf16"
