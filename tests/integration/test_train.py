"""Runs of p1_train.py: what a run as a whole must show. Its parts are tested in tests/unit."""

import json
import random
import resource
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import p1_eval
import p1_train
import p1_viz_attn
from datasets import images
from datasets.transforms import evaluation_transform
from engine.device import keep_freed_memory
from tests.helpers import forked
from tests.helpers.training import Killed, computed, die_after_saves, metrics, same, train, weights


def test_a_run_leaves_what_the_contract_says(run, shapes):
    assert {path.name for path in run.iterdir()} == {"last.pt", "previous.pt", "best.pt", "metrics.csv",
                                                     "config.json", "curves.png"}
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == ["1", "2"] and [row["passes"] for row in rows] == ["8", "8"]
    assert all(0 <= float(row["holdout_accuracy"]) <= 1 and float(row["train_loss"]) > 0 for row in rows)
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["sam"] is True and config["settings"]["optimizer"] == "adam"
    assert config["settings"]["rho"] == 0.05 and config["versions"]["timm"] and "command" in config
    assert config["model"]["depth"] == 6 and config["settings"]["processes"] == 1
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["class_names"] == (shapes / "classes.txt").read_text().split() and "resume" not in best
    assert Image.open(run / "curves.png").width > 1000


def test_the_headline_setting_is_the_default():
    args = p1_train.parse_args(["--data", "p1_data", "--output", "out"])
    assert (args.arch, args.weights, args.scratch, args.rho) == ("vit_base_patch16_224", None, False, 0.05)
    assert (args.sam, args.optimizer) == (True, "adam")


def test_a_seed_gives_the_same_weights_for_any_number_of_workers_and_val_is_never_read(run, shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "data")
    for path in (data / "val").iterdir():
        path.write_bytes(b"not an image")
    assert train(data, tmp_path / "again", "--epochs", 2, "--sam", "--workers", 2) == 0
    for name in ("last.pt", "best.pt"):
        assert same(weights(run, name), weights(tmp_path / "again", name))
    assert train(shapes, tmp_path / "other", "--epochs", 1, "--sam", "--seed", 1) == 0
    assert not same(weights(run, "previous.pt"), weights(tmp_path / "other"))


EVERYTHING = ["--epochs", 2, "--sam", "--accumulate", 2, "--batch-size", 4, "--head-init", "probe",
              "--layer-decay", 0.7, "--label-smoothing", 0.1, "--mixup", 0.5, "--cutmix", 1,
              "--rand-augment", 7, "--random-erasing", 0.5, "--ema", 0.5, "--crop-pct", 1.0,
              "--save-every", 1]


def test_a_run_with_everything_resumes_in_the_middle_of_an_epoch(shapes, tmp_path, monkeypatch):
    """The model draws from all three random streams; each of three parts is of another process."""
    forward = torch.nn.Linear.forward

    def noisy(self, x):
        noise = random.random() + np.random.rand() + torch.rand(1).item() if self.training else 0
        return forward(self, x) * (1 + 1e-3 * noise)

    monkeypatch.setattr(torch.nn.Linear, "forward", noisy)
    assert train(shapes, tmp_path / "straight", *EVERYTHING) == 0
    saved = torch.load(tmp_path / "straight" / "last.pt", weights_only=True)
    assert saved["preprocessing"]["crop_pct"] == 1.0, "the crop of the evaluation is in the checkpoint"
    scales = {group["lr_scale"] for group in saved["resume"]["optimizer"]["param_groups"]}
    assert min(scales) == pytest.approx(0.7**7) and max(scales) == 1, "layer decay reaches the optimizer"

    die_after_saves(monkeypatch, 2, 6)
    for part in range(3):
        random.seed(part), np.random.seed(part), torch.manual_seed(part)
        try:
            assert train(shapes, tmp_path / "killed", *EVERYTHING, "--resume") == 0 and part == 2
        except Killed:
            assert part < 2
    for name in ("last.pt", "best.pt"):
        assert same(weights(tmp_path / "straight", name), weights(tmp_path / "killed", name))
    assert computed(tmp_path / "straight") == computed(tmp_path / "killed")


def test_the_image_size_is_part_of_the_checkpoint(shapes, tmp_path, monkeypatch, capsys):
    """Evaluation, figures, plain timm, a resume and a run from its weights need no flag."""
    run, again, path = tmp_path / "run", tmp_path / "again", tmp_path / "run" / "best.pt"
    assert train(shapes, run, "--epochs", 2, "--image-size", "64x96") == 0
    saved = torch.load(path, weights_only=True)
    assert saved["preprocessing"]["input_size"] == [3, 64, 96]
    assert saved["state_dict"]["pos_embed"].shape[1] == 1 + 4 * 6

    assert p1_eval.main([str(shapes / "val"), "--checkpoint", str(path), "--device", "cpu"]) == 0
    plain = timm.create_model("test_vit", num_classes=4, img_size=(64, 96), checkpoint_path=path).eval()
    transform = evaluation_transform(saved["preprocessing"])
    paths = sorted((shapes / "val").iterdir())
    with torch.no_grad(), np.load(run / "eval.npz") as arrays:
        expected = plain(torch.stack([transform(Image.open(photo)) for photo in paths])).softmax(1)
        assert np.abs(arrays["probabilities"] - expected.numpy()).max() < 1e-5
    assert p1_viz_attn.main([str(paths[0]), "--checkpoint", str(path), "--output-dir", str(tmp_path),
                             "--device", "cpu"]) == 0
    with np.load(tmp_path / f"{paths[0].stem}.npz") as arrays:
        assert arrays["attention"].shape == (4, 6)

    start = ["--weights", path]
    assert train(shapes, again, "--epochs", 2, start=start) == 0
    die_after_saves(monkeypatch, 1)
    with pytest.raises(Killed):
        train(shapes, tmp_path / "killed", "--epochs", 2, start=start)
    path.unlink()
    assert train(shapes, tmp_path / "killed", "--epochs", 2, "--resume", start=start) == 0
    assert weights(again)["pos_embed"].shape[1] == 1 + 4 * 6
    assert same(weights(again), weights(tmp_path / "killed"))
    capsys.readouterr()
    assert train(shapes, run, "--epochs", 3, "--image-size", "96x64", "--resume") == 2
    assert "--image-size is 96x64 now and was 64x96 before" in capsys.readouterr().err


def test_bad_files_in_the_training_set(shapes, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    names = images.list_files(data / "train")
    for name in names[3:5]:
        (data / "train" / name).write_bytes((data / "train" / name).read_bytes()[:500])
    assert train(data, tmp_path / "run", "--epochs", 1) == 2
    message = capsys.readouterr().err
    assert "2 files of 32" in message and "--skip-bad" in message
    assert all(name in message for name in names[3:5])
    assert not (tmp_path / "run" / "last.pt").exists()
    assert train(data, tmp_path / "run", "--epochs", 1, "--skip-bad") == 0
    assert f"left out 2 bad files: {names[3]}, {names[4]}" in capsys.readouterr().err


def test_weights_too_large_leave_no_run(run, shapes, tmp_path, capsys):
    torch.save({key: value * 1e30 for key, value in weights(run).items()}, tmp_path / "huge.pt")
    assert train(shapes, tmp_path / "nan", start=["--weights", tmp_path / "huge.pt"]) == 3
    assert "no good state was saved" in capsys.readouterr().err and not (tmp_path / "nan").exists()


@pytest.mark.real_data
def test_the_real_model_learns_real_photos(real_data, tmp_path):
    weights_file = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    data = tmp_path / "data"
    for label in ("0", "7", "26"):
        for path in sorted((real_data / "pets" / "train").glob(f"{label}_*.jpg"))[:4]:
            (data / "train").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, data / "train")
    assert p1_train.main(["--data", str(data), "--output", str(tmp_path / "run"), "--device", "cpu",
                          "--arch", "vit_tiny_patch16_224", "--weights", str(weights_file), "--sam",
                          "--epochs", "3", "--lr", "2e-4", "--batch-size", "8", "--holdout", "0",
                          "--workers", "0"]) == 0
    rows = metrics(tmp_path / "run")
    assert float(rows[-1]["train_accuracy"]) > 0.9 > float(rows[0]["train_accuracy"])


def test_freed_memory_is_used_again(tmp_path):
    """Pages that the system must clear for ten tensors of 64 MiB, one after the other, not the first ones."""
    process = forked.fresh(count_faults, log=tmp_path / "log")
    process.join(timeout=60)
    without, reused = map(int, (tmp_path / "log").read_text().split())
    assert reused < without / 10


def count_faults():
    def faults():
        for _ in range(10):
            torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    print(-faults() + faults())
    keep_freed_memory(torch.device("cpu"))
    faults()
    print(-faults() + faults())
