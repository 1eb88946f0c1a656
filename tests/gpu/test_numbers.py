"""What a GPU computes in fp32 against the CPU, to 1e-4 of the largest number; captions and SAM's step."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import p1_eval
from benchmarks import training
from datasets import decode, scenes
from datasets.images import list_files, read_training_folder
from datasets.shapes import write_dataset
from engine.checkpointing import CONFIG
from engine.device import pick_device
from engine.step import OptimizerStep, build_optimizer
from interpret import landscape
from interpret.photos import Viewer
from interpret.positions import position_similarity
from interpret.sharpness import load_batches
from models import catr, decoding
from models.checkpoint import open_checkpoint
from tests.helpers.linear import ARGS

ROOT = Path(__file__).resolve().parents[2]
DEMO, CAPTIONER = ROOT / "weights" / "demo_vit.pt", ROOT / "weights" / "demo_captioner.pt"
DEVICES = "cpu", "cuda"
# A product and a convolution in fp32 against float64, where a container asks for TF32.
TF32 = """
import torch
from engine.device import pick_device
assert torch.backends.cuda.matmul.allow_tf32
pick_device("auto")
torch.manual_seed(0)
for work, *sizes in ((torch.nn.functional.conv2d, (8, 64, 32, 32), (64, 64, 3, 3)),
                     (torch.matmul, (512, 64), (64, 512))):
    x, w = (torch.randn(size).cuda() for size in sizes)
    exact = work(x.double(), w.double())
    print(((work(x, w) - exact).abs().max() / exact.abs().max()).item())
"""


@pytest.fixture(scope="module", autouse=True)
def fp32():
    pick_device("auto")


@pytest.fixture(scope="module")
def demo_images(tmp_path_factory):
    """4 images of each class of the demo's model in train/ and val/."""
    return write_dataset(tmp_path_factory.mktemp("demo") / "set", open_checkpoint(DEMO).class_names,
                         train_per_class=4, val_per_class=4, seed=3)


def assert_close(cpu, gpu):
    cpu, gpu = (np.asarray(values, float) for values in (cpu, gpu))
    assert cpu.shape == gpu.shape and abs(cpu - gpu).max() <= 1e-4 * abs(cpu).max()


def test_fp32_is_not_tf32_even_where_the_environment_asks_for_it():
    done = subprocess.run([sys.executable, "-c", TF32], capture_output=True, text=True, cwd=ROOT, check=True,
                          env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"})
    assert all(float(error) < 5e-5 for error in done.stdout.split()), done.stdout


def test_the_accuracy_and_all_probabilities(demo_images, tmp_path):
    for device in DEVICES:
        run = tmp_path / device
        run.mkdir()
        shutil.copy(DEMO, run / "best.pt")
        (run / CONFIG).write_text("{}")
        assert p1_eval.main([str(demo_images / "val"), "--checkpoint", str(run / "best.pt"), "--device",
                             device, "--workers", "0"]) == 0
    cpu, gpu = (np.load(tmp_path / device / "eval.npz") for device in DEVICES)
    assert_close(cpu["probabilities"], gpu["probabilities"])
    assert (tmp_path / "cpu" / "eval.json").read_text() == (tmp_path / "cuda" / "eval.json").read_text()
    assert json.loads((tmp_path / "cuda" / "eval.json").read_text())["accuracy"] > 0.9


def test_attention_and_rollout(demo_images):
    paths = [demo_images / "val" / name for name in list_files(demo_images / "val")[:8]]
    photos = [list(Viewer(torch.device(device), DEMO).attend(paths, with_rollout=True))
              for device in DEVICES]
    for cpu, gpu in zip(*photos, strict=True):
        for name in ("attention", "attention_per_head", "rollout"):
            assert_close(cpu.arrays[name], gpu.arrays[name])
        assert cpu.metadata["predicted"] == gpu.metadata["predicted"]


def test_the_similarity_of_positions():
    assert_close(*(position_similarity(open_checkpoint(DEMO).model.to(device)).cpu() for device in DEVICES))


def test_losses_rises_and_hessian_eigenvalues(demo_images):
    folder = read_training_folder(demo_images / "train", demo_images / "classes.txt")
    folder = folder.keep(range(0, len(folder.names), 5))
    measured = []
    for device in DEVICES:
        checkpoint = open_checkpoint(DEMO)
        checkpoint.model.to(device)
        batches = load_batches(folder, checkpoint, 16, device)[:1]
        loss, start = landscape.classification_loss(checkpoint.model), landscape.weights_of(checkpoint.model)
        measured.append(([landscape.mean_loss(loss, start, batches)],
                         landscape.rises(loss, start, batches, [0.05, 0.2]),
                         landscape.largest_eigenvalues(loss, start, batches[0], 3, tolerance=1e-3)))
    for cpu, gpu in zip(*measured, strict=True):
        assert_close(cpu, gpu)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Drawn scenes, some of them cut to other shapes."""
    folder = scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set", 1, 12, seed=3) / "val"
    whole = [decode.load_image(path) for path in sorted(folder.glob("*.jpg"))]
    return [photo.crop((0, 0, photo.width, photo.height - 24 * (i % 3))) for i, photo in enumerate(whole)]


def captions(photos, device, precision=None, beam=1):
    """(ids, log-probabilities) of each photo's caption."""
    model, tokenizer = catr.open_captioner(CAPTIONER)
    model.to(device)
    with torch.autocast(device, precision) if precision else nullcontext():
        memory = decoding.encode(model, photos)
        ids = decoding.search(model, memory, tokenizer, 40, beam)
        passes = decoding.teacher_force(model, memory, ids, tokenizer)
    return ids, [each.log_probs for each in passes], [each.attention for each in passes]


def test_captions_and_their_maps(photos):
    (ids, log_probs, maps), (gpu_ids, gpu_log_probs, gpu_maps) = (captions(photos, device)
                                                                  for device in DEVICES)
    assert ids == gpu_ids and any(len(each) > 4 for each in ids)
    for cpu, gpu in zip(maps, gpu_maps, strict=True):
        assert_close(cpu, gpu)
    for cpu, gpu in zip(log_probs, gpu_log_probs, strict=True):
        assert_close(cpu.exp(), gpu.exp())


@pytest.mark.parametrize("beam", [1, 3])
def test_captions_in_bf16_are_the_same_again(photos, beam):
    first, again = (captions(photos, "cuda", torch.bfloat16, beam) for _ in range(2))
    assert first[0] == again[0] and all(map(torch.equal, first[1], again[1]))
    assert all(map(torch.equal, first[2], again[2]))


def train_captioner(steps, precision="bf16", sam=False, after_step=lambda: None):
    """The weights after steps of a small CATR with frozen batch norm, on photos of three shapes."""
    torch.manual_seed(0)
    config = dataclasses.replace(catr.small_config(50), pretrained_backbone=True, dropout=0.1)
    model = catr.CATR(config).to("cuda").train()
    args = type("Args", (), {**ARGS, "optimizer": "adamw", "sam": sam})
    if sam:
        args.optimizer = "adam"
    scaler = torch.amp.GradScaler("cuda", enabled=False)

    def loss(model, batch):
        return decoding.token_losses(model(batch[0], batch[1][:, :-1]), batch[1])

    take_step = OptimizerStep(model, build_optimizer(args, model.parameters(), model), scaler, loss,
                              torch.device("cuda"), precision)
    images = [torch.randn(3, 128, 128 - 32 * (i % 3)).to("cuda") for i in range(6)]
    ids = torch.randint(3, 50, (6, 9)).to("cuda")
    for _ in range(steps):
        assert np.isfinite(take_step([[images, ids]], 6)[0])
        after_step()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("sam", [False, True])
def test_the_captioner_trains_to_the_same_bits_in_bf16(deterministic, sam):
    one, other = (train_captioner(3, sam=sam) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_of_the_captioner_waits_once():
    counts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train_captioner(3, after_step=lambda: counts.append(
                len([each for each in caught if "synchronizing" in str(each.message)])))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [after - before for before, after in zip(counts, counts[1:])] == [1, 1]


def test_frozen_batch_norm_keeps_bf16():
    model = catr.CATR(dataclasses.replace(catr.small_config(50), pretrained_backbone=True)).to("cuda")
    formats = []
    for module in model.backbone.modules():
        if type(module).__name__.startswith("FrozenBatchNorm"):
            module.register_forward_hook(lambda module, args, output: formats.append(output.dtype))
    with torch.autocast("cuda", torch.bfloat16):
        model.backbone[0].body(torch.randn(1, 3, 64, 64, device="cuda"))
    assert len(formats) > 10 and set(formats) == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_of_sam_is_two_passes_and_a_step_and_one_copy_of_the_weights(precision, record_property):
    """ViT-B/16 at a batch of 32. Other tests may run beside it: the time is recorded, hardly judged."""
    ways = training.steps(10, ["adam", "passes", "sam"], "vit_base_patch16_224", 32, precision,
                          torch.device("cuda"))
    times = {way: median(taken for taken, _ in turns) for way, turns in ways.items()}
    peaks = {way: median(peak for _, peak in turns) for way, turns in ways.items()}
    what = f"ViT-B/16, 32 images, {precision}"
    record_property(f"{what}, SAM step / two passes and a step", f"{times['sam'] / times['passes']:.3f}")
    for way in ("adam", "sam"):
        record_property(f"{what}, {way}", f"{1e3 * times[way]:.1f} ms, peak {peaks[way]:.0f} MiB")
    weights = sum(value.numel() for value in timm.create_model(
        "vit_base_patch16_224", num_classes=training.CLASSES).parameters()) / 2**18
    assert peaks["adam"] < peaks["sam"] < peaks["adam"] + 1.05 * weights
    assert 0.5 < times["sam"] / times["passes"] < 2


def test_a_loss_on_the_gpu_is_that_of_the_cpu():
    """A step of SAM on a ViT, fp32: the gradient at the perturbed weights."""
    torch.manual_seed(0)
    start = timm.create_model("test_vit", num_classes=4)
    images, targets = torch.randn(8, 3, 160, 160), torch.arange(8) % 4

    def loss(model, batch):
        logits = model(batch[0])
        return F.cross_entropy(logits, batch[1], reduction="sum"), (logits.argmax(1) == batch[1]).sum()

    gradients = []
    for device in DEVICES:
        model = copy.deepcopy(start).to(device)
        args = type("Args", (), {**ARGS, "optimizer": "sgd", "sam": True, "lr": 1.0})
        take_step = OptimizerStep(model, build_optimizer(args, model.parameters(), model),
                                  torch.amp.GradScaler(device, enabled=False), loss, torch.device(device),
                                  "fp32")
        take_step([[images.to(device), targets.to(device)]], 8)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).cpu())
    assert_close(*gradients)
