"""How fast photos are evaluated, explained and captioned, and maps drawn, against the plain ways.

Evaluation and maps are in fp32; their time is that from opening the checkpoint to the predictions, or maps.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image

import p1_eval
from benchmarks.rows import compare, pace
from datasets.decode import load_image
from datasets.shapes import DEMO_DATA, write_dataset
from engine.device import keep_freed_memory
from interpret.photos import Viewer
from models import catr, decoding
from models.checkpoint import checkpoint_fields
from models.tokenizer import Tokenizer
from models.vit import preprocessing
from plots.attention import ModelView, draw_rows
from plots.drawing import Drawing, draw_whole
from plots.posembed import draw_mosaic
from plots.style import save

CLASSES = 37
BATCH_SIZE = 64  # that of p1_eval.py
TOKENS = 16  # of a caption
CPU = torch.device("cpu")
REAL_DATA = os.environ.get("REAL_DATA", "")


def photo_folder(folder, count):
    """Make `folder` with `count` links to photos, one subfolder a class; returns their paths, sorted.

    They are the training photos of REAL_DATA, or else the demo's images, which are smaller.
    """
    data = Path(REAL_DATA).resolve() / "pets" if REAL_DATA else write_dataset(DEMO_DATA)
    sources = sorted((data / "train").iterdir())
    paths = [folder / str(i % CLASSES) / f"{i:06}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(sources[i % len(sources)])
    return sorted(paths)


def write_checkpoint(path, arch):
    """A checkpoint with the pretrained weights that REAL_DATA has, or with random ones; returns its path."""
    weights = Path(REAL_DATA, "weights", f"{arch}.augreg_in21k_ft_in1k.safetensors")
    model = timm.create_model(arch, checkpoint_path=weights if weights.exists() else "")
    labels = [str(i) for i in range(model.num_classes)]
    torch.save({**checkpoint_fields(arch, labels, labels, preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)
    return path


def predictions(checkpoint, folder):
    """Have p1_eval.py write the labels of the photos of a folder beside it."""
    flags = [str(folder), str(folder.with_suffix(".csv")), "--checkpoint", str(checkpoint), "--device", "cpu"]
    p1_eval.main(flags)


def attention(checkpoint, paths):
    """The maps (photos, H, W) that p1_viz_attn.py draws."""
    keep_freed_memory(CPU)
    return np.stack([photo.attention for photo in Viewer(CPU, checkpoint).attend(paths)])


@torch.no_grad()
def tensor(arch, count):
    """The model on one tensor, in batches: (images/s, None)."""
    keep_freed_memory(CPU)
    model = timm.create_model(arch).eval()
    images = torch.randn(BATCH_SIZE, *model.pretrained_cfg["input_size"])
    model(images)
    return pace(count, lambda: [model(images[:count - i]) for i in range(0, count, BATCH_SIZE)])[0], None


@torch.no_grad()
def plain_attention(arch, checkpoint, paths):
    """The same maps one photo after the other, from weights that are not fused, as public scripts do."""
    model = timm.create_model(arch, checkpoint_path=checkpoint).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    maps = []
    model.blocks[-1].attn.attn_drop.register_forward_hook(
        lambda module, inputs, weights: maps.append(weights[0, :, 0, 1:].mean(0)))
    for block in model.blocks:
        block.attn.fused_attn = False
    for path in paths:
        model(transform(Image.open(path).convert("RGB"))[None])
    return torch.stack(maps).unflatten(1, model.patch_embed.grid_size).numpy()


def figures(folder, paths, beside):
    """(Figures of attention a second, None): drawn by processes beside this one, or by itself."""
    attention = np.random.default_rng(0).dirichlet([0.1] * 196).reshape(14, 14)
    rows = []
    for path in paths:
        photo = np.asarray(load_image(path))
        rows.append([(ModelView(photo, (0, 0, *photo.shape[1::-1])), attention, path.stem)])

    def draw():
        if not beside:
            for i, row in enumerate(rows):
                draw_whole(folder / f"{i}.png", draw_rows, (row, ""), {})
            return
        with Drawing() as drawing:
            for i, row in enumerate(rows):
                drawing.draw(folder / f"{i}.png", draw_rows, row, "")

    draw_whole(folder / "0.png", draw_rows, (rows[0], ""), {})  # the first figure loads the fonts
    return pace(len(rows), draw)[0], None


def grid(path, side, subplots=False):
    """(Figures/s, None) of a grid of side x side maps: as one image, or as one subplot a map."""
    def draw(similarity):
        figure = Figure(figsize=(12, 12))
        axes = figure.subplots(*similarity.shape[:2] if subplots else ())
        if subplots:
            for panel, patch in zip(axes.flat, similarity.reshape(-1, *similarity.shape[2:])):
                image = panel.imshow(patch, vmin=-1, vmax=1)
                panel.axis("off")
        else:
            image = draw_mosaic(axes, similarity)
        figure.colorbar(image, ax=axes)
        figure.savefig(path, dpi=200) if subplots else save(figure, path)

    near = np.exp(-np.square(np.subtract.outer(np.arange(side), np.arange(side))) / side)
    similarity = np.einsum("ik,jl->ijkl", near, near)  # smooth, as a ViT's are: noise would not compress
    draw(similarity)  # the first figure of a process loads fonts and allocates
    return pace(1, draw, similarity)


def evaluation(options, work):
    arch, count, few, side = "vit_tiny_patch16_224", 331, 100, 24
    if options.small:
        arch, count, few, side = "test_vit", 8, 4, 4
    checkpoint, folder = write_checkpoint(work / "checkpoint.pt", arch), work / "photos"
    paths = photo_folder(folder, count)
    yield from compare(
        options.repeats, "evaluating photos", "images/s", (pace, count, predictions, checkpoint, folder),
        ("the model on a tensor in memory", 0.8, tensor, arch, count))
    yield from compare(
        options.repeats, f"attention of {few} photos", "photos/s",
        (pace, few, attention, checkpoint, paths[:few]),
        ("one photo at a time, not fused", 1.2, pace, few, plain_attention, arch, checkpoint, paths[:few]),
        equal=partial(np.allclose, rtol=0, atol=1e-5))
    setting = grid, work / "grid.png", side
    yield from compare(options.repeats, f"grid of {side} x {side} maps", "figures/s", setting,
                       ("one subplot a map", 15, *setting, True))
    setting = figures, work / "figures", paths[:few]
    yield from compare(options.repeats, f"{few} figures of attention", "figures/s", (*setting, True),
                       ("one after the other", 1.8, *setting, False))


def again(model, photo, tokenizer, count):
    """The ids of a caption by the network on all positions for each token, as the public code computes it."""
    ids = []
    for t in range(count):
        tokens = torch.full((1, model.config.positions), Tokenizer.PAD)
        tokens[0, :t + 1] = torch.tensor([tokenizer.start, *ids])
        ids.append(model([photo], tokens.to(photo.device))[0, t].argmax().item())
    return ids


def cached(model, photo, tokenizer, count):
    """The ids of a greedy caption, which comes with its maps, as p2_caption_viz.py computes them."""
    memory = model.encode([photo])
    captions = decoding.search(model, memory, tokenizer, count)
    return decoding.teacher_force(model, memory, captions, tokenizer)[0].ids


@torch.no_grad()
def caption(config, device, way):
    """(Captions/s, ids) with random weights that never predict the end token."""
    keep_freed_memory(device)
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(4, config.vocabulary))])
    torch.manual_seed(0)
    model = catr.CATR(config).eval().to(device)
    model.mlp.layers[-1].bias[tokenizer.end] = -1e9
    photo = catr.preprocess(Image.new("RGB", (299, 224)), config).to(device)
    way(model, photo, tokenizer, 1)  # the first one allocates
    return pace(1, way, model, photo, tokenizer, TOKENS)  # ids are numbers: a GPU has finished


def captions(options, work):
    config = catr.small_config(100) if options.small else catr.Config()
    setting = caption, config, options.device
    return compare(options.repeats, f"caption of {TOKENS} tokens, with maps", "captions/s",
                   (*setting, cached), ("the network again for each token", 10, *setting, again))
