"""Draw the cosine similarity of every position embedding with all others, and print what it shows as numbers.

    python p1_viz_posembed.py --checkpoint runs/headline/best.pt --output figures/posembed.png
    python p1_viz_posembed.py --arch vit_base_patch16_224 --image-size 384 --output figures/pretrained.pdf
    python p1_viz_posembed.py --arch vit_base_patch16_224 --checkpoint runs/headline/best.pt runs/scratch/best.pt \\
        --output figures/compared.png

The map in row i, column j compares the patch there with all patches. Several names and checkpoints stand side by side.
FILE.npz holds the arrays: `similarity` (H, W, H, W), then `similarity_1`, `similarity_2`, ...; and their `titles`.

Printed, and drawn below: the mean similarity to the patches of the same row, of the same column and elsewhere, and the
share of patches whose most similar other patch is one of their 8 neighbours; each beside 100 random embeddings.
"""

import argparse
import sys
from pathlib import Path

from common.cli import ArgumentParser, image_size, picture_file, reports_errors
from common.errors import BadInput

RANDOM = 100  # embeddings to compare with


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
                        help="of p1_train.py")
    parser.add_argument("--arch", nargs="+", action="extend", default=[], metavar="NAME",
                        help="timm names, with timm's weights; they stand before the checkpoints")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a weights file for the one --arch")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW",
                        help="resample the embedding for images of this size, as timm does (the model's own)")
    parser.add_argument("--output", type=picture_file, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                        help="auto is the GPU where there is one")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not args.checkpoint and not args.arch:
        raise BadInput("name a --checkpoint or an --arch")
    if args.weights and len(args.arch) != 1:
        raise BadInput("--weights belongs to exactly one --arch")

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np

    from common.files import written_whole
    from engine.device import pick_device
    from interpret.positions import position_similarity, position_statistics, random_statistics
    from models import vit
    from models.checkpoint import open_checkpoint
    from plots.posembed import draw_similarities

    device = pick_device(args.device)
    models, titles = [], []
    for arch in args.arch:
        models.append(vit.create(arch, weights=args.weights)[0])
        titles.append(f"{arch}\n{args.weights.name if args.weights else 'pretrained'}")
    for path in args.checkpoint:
        opened = open_checkpoint(path)
        models.append(opened.model)
        titles.append(f"{opened.arch}\n{path.parent.name}/{path.name}")
    similarities, grids = [], []
    for name, model in zip([*args.arch, *args.checkpoint], models):
        grids.append(tuple(model.patch_embed.grid_size))
        try:
            if args.image_size:
                vit.set_image_size(model, args.image_size)
            similarities.append(position_similarity(model.to(device)).cpu())
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from error
    statistics = [position_statistics(similarity) for similarity in similarities]
    random = {}
    for similarity, model, grid in zip(similarities, models, grids):
        shown, channels = tuple(similarity.shape[:2]), model.pos_embed.shape[-1]
        name = f"{RANDOM} random embeddings, {grid[0]}x{grid[1]} of {channels}"
        if shown != grid:
            name += f", resampled to {shown[0]}x{shown[1]}"
        if name not in random:
            random[name] = random_statistics(grid, channels, shown, RANDOM)
    similarities = [similarity.numpy() for similarity in similarities]

    arrays = {"similarity" if i == 0 else f"similarity_{i}": similarity for i, similarity in enumerate(similarities)}
    with written_whole(args.output.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays, titles=[title.replace("\n", " ") for title in titles])
    with written_whole(args.output) as temporary:
        draw_similarities(similarities, statistics, random, titles, temporary)
    print("same row  same column  elsewhere  nearest one adjacent")
    for values, title in zip(statistics, titles):
        print(as_row(values), title.replace("\n", " "))
    for name, draws in random.items():
        print(as_row({kind: values.mean() for kind, values in draws.items()}), f"mean of {name}")
        print(as_row({kind: values.max() for kind, values in draws.items()}), "the highest of them")
    print(f"{args.output} and {args.output.with_suffix('.npz')}")
    return 0


def as_row(values):
    """The numbers of `position_statistics` as a line of the printed table."""
    return (f"{values['same_row']:8.3f}  {values['same_column']:11.3f}  {values['elsewhere']:9.3f}  "
            f"{values['nearest_adjacent']:20.1%} ")


if __name__ == "__main__":
    sys.exit(main())
