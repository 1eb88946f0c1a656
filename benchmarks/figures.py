"""How fast figures and their arrays are made, against the way one would write them first."""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.evaluation import photo_folder, plain, write_checkpoint
from benchmarks.rows import in_turn, ratio, seconds
from datasets.decode import load_image
from datasets.transforms import evaluation_transform
from engine.device import keep_freed_memory
from interpret.attention import attention_maps, cls_to_patch, patch_grid
from models.checkpoint import open_checkpoint
from plots.posembed import draw_mosaic
from plots.style import save

pyplot.switch_backend("Agg")


def grid_as_one_image(similarity, path):
    figure = Figure(figsize=(12, 12))
    axes = figure.subplots()
    figure.colorbar(draw_mosaic(axes, similarity), ax=axes)
    save(figure, path)


def grid_of_subplots(similarity, path):
    figure, panels = pyplot.subplots(*similarity.shape[:2], figsize=(12, 12))
    for axes, patch in zip(panels.flat, similarity.reshape(-1, *similarity.shape[2:])):
        image = axes.imshow(patch, vmin=-1, vmax=1)
        axes.axis("off")
    figure.colorbar(image, ax=panels)
    figure.savefig(path, dpi=200)
    pyplot.close(figure)


def attention(checkpoint, paths):
    """Photos opened by threads, in batches, the last block alone in steps: (seconds, maps (photos, H, W))."""
    started = time.perf_counter()
    keep_freed_memory(torch.device("cpu"))
    opened = open_checkpoint(checkpoint)
    transform = evaluation_transform(opened.preprocessing)
    grid = patch_grid(opened.model, opened.preprocessing["input_size"][1:])
    maps = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(paths), 16):
            images = torch.stack(list(pool.map(lambda path: transform(load_image(path)), paths[i:i + 16])))
            _, (last,) = attention_maps(opened.model, images)
            maps.append(cls_to_patch(last, opened.model, grid).mean(1))
    return time.perf_counter() - started, torch.cat(maps).numpy()


def rows(options):
    """The rows of the table. Raises RuntimeError where the maps differ by more than 1e-5."""
    arch, count, side = ("test_vit", 4, 4) if options.small else ("vit_tiny_patch16_224", 100, 24)
    with tempfile.TemporaryDirectory() as work:
        similarity, path = np.random.uniform(-1, 1, [side] * 4), Path(work) / "grid.png"
        draws = grid_as_one_image, grid_of_subplots
        draws[0](similarity, path)  # the first figure loads the fonts
        pace = [[1 / seconds(draw, similarity, path) for draw in draws] for _ in range(options.repeats)]
        yield ratio(f"grid of {side} x {side} maps / one subplot a map", *zip(*pace), ">=", 15, "figures/s")

        paths, checkpoint = photo_folder(Path(work) / "photos", count), Path(work) / "checkpoint.pt"
        write_checkpoint(checkpoint, arch)
        turns = in_turn(options.repeats, ours=(attention, checkpoint, paths),
                        plain=(plain, arch, checkpoint, paths, False))
    if not np.allclose(turns["ours"][0][-1], turns["plain"][0][-1], rtol=0, atol=1e-5):
        raise RuntimeError("the maps differ by more than 1e-5")
    pace = [[count / taken for taken, *_ in results] for results in turns.values()]
    yield ratio(f"attention of {count} photos / one photo at a time, not fused", *pace, ">=", 1.2, "photos/s")
