import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import p1_train
from datasets import images
from engine import checkpointing
from engine.schedule import warmup_cosine
from engine.seeding import ShuffledBatches
from tests.helpers.training import largest_difference, metrics, same, train, weights


def test_a_run_leaves_what_the_contract_says(run, shapes):
    assert {path.name for path in run.iterdir()} == {"last.pt", "previous.pt", "best.pt", "metrics.csv", "config.json",
                                                     "curves.png"}
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["holdout_accuracy"]) <= 1 and float(row["train_loss"]) > 0 for row in rows)
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["sam"] is True and config["settings"]["optimizer"] == "adam"
    assert config["settings"]["rho"] == 0.05 and config["versions"]["timm"] and "command" in config
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["class_names"] == (shapes / "classes.txt").read_text().split() and "resume" not in best
    assert Image.open(run / "curves.png").width > 1000


def test_the_headline_setting_is_the_default():
    args = p1_train.get_args_parser().parse_args(["--data", "p1_data", "--output", "out"])
    assert (args.arch, args.weights, args.scratch, args.rho) == ("vit_base_patch16_224", None, False, 0.05)


@pytest.mark.parametrize("flags, optimizer, sam", [
    ([], "adam", True), (["--optimizer", "adam"], "adam", False), (["--optimizer", "sgd", "--sam"], "sgd", True),
    (["--sam"], "adam", True), (["--no-sam"], "adam", False), (["--optimizer", "adamw"], "adamw", False),
])
def test_the_optimizer_is_what_is_named_and_sam_around_adam_otherwise(shapes, tmp_path, flags, optimizer, sam):
    assert train(shapes, tmp_path / "run", "--epochs", 1, "--holdout", 0, *flags) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["optimizer"], settings["sam"]) == (optimizer, sam)
    groups = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["resume"]["optimizer"]["param_groups"]
    assert ("rho" in groups[0]) is sam and ("momentum" in groups[0]) is (optimizer == "sgd")


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(run, shapes, tmp_path):
    assert train(shapes, tmp_path / "again", "--epochs", 2, "--sam", "--workers", 2) == 0
    assert same(weights(run), weights(tmp_path / "again")) and same(weights(run, "best.pt"), weights(tmp_path / "again", "best.pt"))
    assert train(shapes, tmp_path / "other", "--epochs", 2, "--sam", "--seed", 1) == 0
    assert not same(weights(run), weights(tmp_path / "other"))


def test_accumulated_batches_are_one_big_batch(shapes, tmp_path):
    settings = ["--epochs", 1, "--optimizer", "sgd", "--sam", "--holdout", 0]
    assert train(shapes, tmp_path / "big", *settings, "--batch-size", 12) == 0
    assert train(shapes, tmp_path / "small", *settings, "--batch-size", 4, "--accumulate", 3) == 0  # 12, 12 and 8 images
    assert largest_difference(weights(tmp_path / "big"), weights(tmp_path / "small")) < 1e-6
    assert float(metrics(tmp_path / "big")[0]["train_loss"]) == pytest.approx(float(metrics(tmp_path / "small")[0]["train_loss"]))


def test_micro_batches_may_climb_each_by_itself(shapes, tmp_path):
    settings = ["--epochs", 1, "--optimizer", "sgd", "--sam", "--rho", 0.1, "--holdout", 0, "--lr", 0.01]
    accumulated = [*settings, "--batch-size", 4, "--accumulate", 3]
    assert train(shapes, tmp_path / "one", *settings, "--batch-size", 4) == 0
    assert train(shapes, tmp_path / "one each", *settings, "--batch-size", 4, "--climb", "micro-batch") == 0
    assert train(shapes, tmp_path / "joint", *accumulated) == 0
    assert train(shapes, tmp_path / "each", *accumulated, "--climb", "micro-batch", "--precision", "fp16") == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "one each"))
    assert largest_difference(weights(tmp_path / "joint"), weights(tmp_path / "each")) > 1e-5
    losses = [float(metrics(tmp_path / name)[0]["train_loss"]) for name in ("joint", "each")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_val_is_never_read(shapes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for path in (data / "val").iterdir():
        path.write_bytes(b"not an image")
    assert train(data, tmp_path / "run", "--epochs", 1) == 0


def test_the_best_epoch_is_the_last_one_with_the_highest_score(shapes, tmp_path, monkeypatch):
    scores = iter([0.25, 0.75, 0.75, 0.5])

    def predict(model, loader, device, precision, progress):
        share = next(scores)
        logits = torch.zeros(4, 4)
        logits[torch.arange(4), [0 if i < share * 4 else 1 for i in range(4)]] = 1
        return logits, torch.zeros(4, dtype=torch.long)

    kept, save = [], checkpointing.save_checkpoint
    monkeypatch.setattr("engine.inference.predict", predict)
    monkeypatch.setattr(checkpointing, "save_checkpoint", lambda content, path, *previous: (kept.append(path.name), save(content, path, *previous)))
    assert train(shapes, tmp_path / "run", "--epochs", 4, "--optimizer", "adam") == 0
    assert kept == ["last.pt", "best.pt", "last.pt", "best.pt", "last.pt", "best.pt", "last.pt"]


def test_without_a_held_out_part_the_last_epoch_is_the_best(shapes, tmp_path):
    assert train(shapes, tmp_path / "run", "--epochs", 2, "--holdout", 0, "--optimizer", "adam") == 0
    assert same(weights(tmp_path / "run", "best.pt"), weights(tmp_path / "run", "last.pt"))
    assert [row["holdout_accuracy"] for row in metrics(tmp_path / "run")] == ["", ""]


@pytest.mark.parametrize("flags", [["--sam"], ["--sam", "--adaptive", "--rho", "0.5"], ["--optimizer", "adamw"]])
def test_mixed_precision_trains(shapes, tmp_path, flags):
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        output = tmp_path / precision
        assert train(shapes, output, "--epochs", 2, "--holdout", 0, *flags, "--precision", precision) == 0
        losses[precision] = float(metrics(output)[1]["train_loss"])
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_learning_rate_schedule():
    factor = warmup_cosine(100, 10)
    assert [factor(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert factor(55) == pytest.approx(0.5) and factor(100) == pytest.approx(0)
    assert factor(40) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert warmup_cosine(1, 0)(0) == 1


@pytest.mark.parametrize("flags", [["--optimizer", "sgd"], ["--optimizer", "sgd", "--sam", "--rho", 0]])
def test_layer_decay_reaches_the_steps(shapes, tmp_path, flags):
    """One step from the same weights, momentum not yet in play: each parameter moves by its layer's share of the plain one."""
    flags = ["--epochs", 1, "--holdout", 0, "--batch-size", 32, "--lr", 0.1, *flags]
    assert train(shapes, tmp_path / "start", *flags, "--lr", 0) == 0
    assert train(shapes, tmp_path / "plain", *flags) == 0
    assert train(shapes, tmp_path / "decay", *flags, "--layer-decay", 0.5) == 0
    start, plain, decay = (weights(tmp_path / name) for name in ("start", "plain", "decay"))
    for name, layers_above in (("head.weight", 0), ("blocks.5.mlp.fc1.weight", 1), ("blocks.3.attn.qkv.weight", 3), ("cls_token", 7)):
        moved = plain[name] - start[name]
        assert moved.abs().max() > 0
        # a step of 2^-7 of the rate is near the last bits of the weights
        assert (decay[name] - start[name] - moved / 2**layers_above).abs().max() < 0.01 * moved.abs().max() / 2**layers_above + 3e-8


def test_the_crop_of_the_evaluation_is_in_the_checkpoint(run, shapes, tmp_path):
    assert train(shapes, tmp_path / "run", "--epochs", 1, "--crop-pct", 1.0) == 0
    saved = [torch.load(folder / "best.pt", weights_only=True)["preprocessing"] for folder in (run, tmp_path / "run")]
    assert saved[1] == {**saved[0], "crop_pct": 1.0} and saved[0]["crop_pct"] < 1


def test_metrics_count_passes_and_memory(run, shapes, tmp_path):
    """29 images in batches of 8, and both passes of SAM; a process with torch takes more than 100 MiB."""
    assert [row["passes"] for row in metrics(run)] == ["8", "8"]
    assert train(shapes, tmp_path / "run", "--epochs", 1, "--optimizer", "adam", "--accumulate", 2, "--batch-size", 4) == 0
    assert [row["passes"] for row in metrics(tmp_path / "run")] == ["8"]
    assert all(100 < float(row["peak_memory_mib"]) < 100_000 for row in metrics(run))


def test_batches_are_a_permutation_that_depends_on_seed_and_epoch():
    batches = ShuffledBatches(10, 4, seed=0)
    first = list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2] and len(batches) == 3
    assert sorted(index for batch in first for _, index in batch) == list(range(10))
    assert list(batches) == first
    batches.epoch = 1
    second = list(batches)
    assert [index for batch in second for _, index in batch] != [index for batch in first for _, index in batch]
    batches.start = 2
    assert list(batches) == second[2:]


def test_processes_share_the_batches_of_one():
    """9 images, 4 a batch: the last one has a single image, and index 9, no image, for the second process."""
    alone = list(ShuffledBatches(9, 4, seed=0))
    shares = [list(ShuffledBatches(9, 2, seed=0, process=process, processes=2)) for process in (0, 1)]
    assert [len(batch) for batch in shares[0]] == [len(batch) for batch in shares[1]] == [2, 2, 1]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sorted(whole) == sorted(key for part in parts for key in part if key[1] != 9)
    assert shares[1][2] == [(0, 9)]


def test_bad_files_in_the_training_set(shapes, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    names = images.list_files(data / "train")
    for name in names[3:5]:
        (data / "train" / name).write_bytes((data / "train" / name).read_bytes()[:500])
    assert train(data, tmp_path / "run", "--epochs", 1) == 2
    message = capsys.readouterr().err
    assert "2 files of 32" in message and all(name in message for name in names[3:5]) and "--skip-bad" in message
    assert not (tmp_path / "run" / "last.pt").exists()
    assert train(data, tmp_path / "run", "--epochs", 1, "--skip-bad") == 0
    assert f"left out 2 bad files: {names[3]}, {names[4]}" in capsys.readouterr().err


@pytest.mark.real_data
def test_the_real_model_learns_real_photos(real_data, tmp_path):
    weights_file = real_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    data = tmp_path / "data"
    for label in ("0", "7", "26", "31"):
        for path in sorted((real_data / "pets" / "train").glob(f"{label}_*.jpg"))[:8]:
            (data / "train").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, data / "train")
    assert p1_train.main(["--data", str(data), "--output", str(tmp_path / "run"), "--arch", "vit_tiny_patch16_224",
                          "--weights", str(weights_file), "--sam", "--epochs", "4", "--lr", "1e-4", "--batch-size", "8",
                          "--holdout", "0", "--workers", "2", "--device", "cpu"]) == 0
    rows = metrics(tmp_path / "run")
    assert float(rows[-1]["train_accuracy"]) > 0.9 > float(rows[0]["train_accuracy"])


def test_a_machine_without_git_trains(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train(shapes, tmp_path / "run", "--epochs", 1) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["git_commit"] is None


def test_a_full_gpu_is_one_line(shapes, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", full)
    assert train(shapes, tmp_path / "run", "--epochs", 1) == 2
    assert "smaller --batch-size" in capsys.readouterr().err


def test_freed_memory_is_used_again():
    """Pages that the system must clear for ten tensors of 64 MiB, one after the other and not the first ones."""
    count = "\n".join(["import resource, torch", "from engine.device import keep_freed_memory", "{}",
                       "def faults():", "    for _ in range(10): torch.ones(2**24)",
                       "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt", "print(-faults() + faults())"])
    without, kept = [int(subprocess.run([sys.executable, "-c", count.format(call)], capture_output=True, text=True, check=True,
                                        cwd=Path(__file__).parent.parent).stdout) for call in ("", "keep_freed_memory()")]
    assert kept < without / 10
