"""How fast figures are made, against the way one would write them first.

    python -m benchmarks figures
    python -m benchmarks.figures arrays checkpoint.pt photos output
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import p1_viz_attn
from benchmarks import evaluation, photos
from benchmarks.rows import in_own_processes, in_turn, ratio

TOLERANCE = 1e-5
GRID = 24


# Position embeddings -----------------------------------------------------------------------------------------------


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def grid_as_one_image(similarity, path):
    from matplotlib.figure import Figure

    from plots.drawing import place, save
    from plots.posembed import draw_mosaic

    figure = Figure(figsize=(12, 12))
    drawn = draw_mosaic(place(figure, 0.6, 0.6, 10.4, 10.8), similarity)
    figure.colorbar(drawn, cax=place(figure, 11.2, 2, 0.2, 8))
    save(figure, path, dpi=220)


def grid_of_subplots(similarity, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height, width = similarity.shape[:2]
    figure, panels = plt.subplots(height, width, figsize=(12, 12))
    for i in range(height):
        for j in range(width):
            drawn = panels[i, j].imshow(similarity[i, j], vmin=-1, vmax=1)
            panels[i, j].axis("off")
    figure.colorbar(drawn, ax=panels)
    figure.savefig(path, dpi=220)
    plt.close(figure)


# Attention ---------------------------------------------------------------------------------------------------------


def arrays(checkpoint, folder):
    """What p1_viz_attn.py reads of the photos: the time, without that for the checkpoint, and the maps."""
    from datasets.transforms import evaluation_transform
    from engine.device import pick_device
    from interpret.attention import patch_grid
    from models.checkpoint import open_checkpoint

    device = pick_device("cpu")
    opened = open_checkpoint(checkpoint)
    grid = patch_grid(opened.model, opened.preprocessing["input_size"][1:])
    args = p1_viz_attn.get_args_parser().parse_args([str(folder), "--checkpoint", str(checkpoint), "--output-dir", "unused"])
    started = time.perf_counter()
    maps = [found["attention"] for *_, found in p1_viz_attn.attended(
        opened.model, sorted(folder.iterdir()), evaluation_transform(opened.preprocessing), grid, device, args)]
    return time.perf_counter() - started, np.stack(maps)


@torch.no_grad()
def plain_arrays(checkpoint, folder):
    """One photo at a time through timm's own slow path, fused attention off in all blocks."""
    model, _ = evaluation.opened(checkpoint)
    for block in model.blocks:
        block.attn.fused_attn = False
    last = {}
    model.blocks[-1].attn.attn_drop.register_forward_hook(lambda module, inputs, output: last.update(map=output))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    side = model.patch_embed.grid_size[0]
    maps, started = [], time.perf_counter()
    for path in sorted(folder.iterdir()):
        model(transform(Image.open(path).convert("RGB"))[None])
        maps.append(last["map"][0, :, 0, 1:].mean(0).reshape(side, side).numpy())
    return time.perf_counter() - started, np.stack(maps)


def pictures(checkpoint, folder):
    """All of p1_viz_attn.py but the imports: checks, checkpoint, arrays, npz and PNG files."""
    with tempfile.TemporaryDirectory() as output:
        return seconds(lambda: p1_viz_attn.main([str(folder), "--checkpoint", str(checkpoint), "--output-dir", output,
                                                 "--device", "cpu"])), None


def plain_pictures(checkpoint, folder):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    started = time.perf_counter()
    _, maps = plain_arrays(checkpoint, folder)
    with tempfile.TemporaryDirectory() as output:
        for path, attention in zip(sorted(folder.iterdir()), maps):
            np.savez_compressed(Path(output) / f"{path.stem}.npz", attention=attention)
            photo = Image.open(path).convert("RGB")
            over = Image.fromarray(attention).resize(photo.size, Image.BILINEAR)
            figure, panels = plt.subplots(1, 3, figsize=(11, 3.3 * photo.height / photo.width + 0.35))  # as large as ours
            panels[0].imshow(photo)
            drawn = panels[1].imshow(attention, cmap="inferno")
            panels[2].imshow(photo)
            panels[2].imshow(over, cmap="inferno", alpha=0.6)
            panels[0].set_title(path.stem)
            for axes in panels:
                axes.axis("off")
            figure.colorbar(drawn, ax=panels)
            figure.savefig(Path(output) / f"{path.stem}.png", dpi=180)
            plt.close(figure)
    return time.perf_counter() - started, None


WAYS = {"arrays": arrays, "plain_arrays": plain_arrays, "pictures": pictures, "plain_pictures": plain_pictures}


def rows(options):
    """The rows of the table. Raises RuntimeError where the maps differ by more than 1e-5."""
    grid = 4 if options.small else GRID
    embeddings = torch.nn.functional.normalize(torch.randn(grid**2, 64), dim=1)
    similarity = (embeddings @ embeddings.T).reshape(grid, grid, grid, grid).numpy()
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "grid.png"
        grid_as_one_image(similarity, path)  # the first figure loads the fonts
        times = in_turn(options.repeats, {"image": lambda: seconds(lambda: grid_as_one_image(similarity, path)),
                                          "subplots": lambda: seconds(lambda: grid_of_subplots(similarity, path))})
        yield ratio(f"grid of {grid} x {grid} similarities / one subplot a patch", times["image"], times["subplots"],
                    ">=", 15, "s", inverted=True)

        checkpoint, folder = Path(work) / "checkpoint.pt", Path(work) / "photos"
        evaluation.write_checkpoint(checkpoint, options.arch)
        folder.mkdir()
        for photo in photos.paths(options.photos):
            (folder / photo.name).symlink_to(photo)
        found = in_own_processes(options.repeats, "benchmarks.figures", WAYS, checkpoint, folder, work)
        ours, plain = (np.load(Path(work) / f"{way}.npy") for way in ("arrays", "plain_arrays"))
        if not np.abs(ours - plain).max() <= TOLERANCE:
            raise RuntimeError(f"the maps differ by {np.abs(ours - plain).max()}")
        yield ratio(f"attention of {options.photos} photos / one photo at a time, not fused",
                    found["arrays"], found["plain_arrays"], ">=", 1.2, "s", inverted=True)
        yield ratio("the same with the pictures / a matplotlib figure a photo",
                    found["pictures"], found["plain_pictures"], ">=", 2, "s", inverted=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="of photos")
    parser.add_argument("output", type=Path, help="folder that receives the maps, WAY.npy")
    options = parser.parse_args(argv)
    taken, maps = WAYS[options.way](options.checkpoint, options.folder)
    if maps is not None:
        np.save(options.output / f"{options.way}.npy", maps)
    print(json.dumps(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
