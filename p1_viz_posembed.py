"""Draw the cosine similarity of every position embedding with all others, and print what it shows as numbers.

    python p1_viz_posembed.py --checkpoint runs/headline/best.pt --output figures/posembed.png
    python p1_viz_posembed.py --arch vit_base_patch16_224 --image-size 384 --output figures/pretrained.pdf
    python p1_viz_posembed.py --arch vit_base_patch16_224 --checkpoint runs/headline/best.pt --output two.png

The map in row i, column j compares the patch there with all patches. Several models stand side by side.
The largest and the mean difference of each to the first are printed, and stand below its map.
FILE.npz holds `similarity` (H, W, H, W), `similarity_1`, `similarity_2`, ..., their `titles`, and
`adjacent_by_chance` (models), the last of the numbers that are printed and drawn below: the mean similarity
to the patches of the same row, of the same column and elsewhere, and the share of patches whose most similar
other one is one of their 8 neighbours; each beside 100 random embeddings.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, ImageSize, picture_file, reports_errors
from common.errors import BadInput

RANDOM = 100  # embeddings to compare with


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
        help="of p1_train.py")
    add("--arch", nargs="+", action="extend", default=[], metavar="NAME",
        help="timm names, with timm's weights; they stand before the checkpoints")
    add("--weights", type=Path, metavar="FILE", help="a weights file for the one --arch")
    add("--image-size", type=ImageSize, metavar="N|HxW",
        help="resample the embedding for images of this size, as timm does (the model's own)")
    add("--output", type=picture_file, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU, if there is one")
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
    from engine.device import keep_freed_memory, pick_device
    from interpret.positions import position_similarity, position_statistics, random_statistics
    from models import vit
    from models.checkpoint import open_checkpoint
    from plots.posembed import draw_similarities

    device = pick_device(args.device)
    keep_freed_memory(device)
    models = [(vit.create(arch, weights=args.weights)[0], arch,
               f"{arch}\n{args.weights.name if args.weights else 'pretrained'}") for arch in args.arch]
    for path in args.checkpoint:
        opened = open_checkpoint(path)
        models.append((opened.model, path, f"{opened.arch}\n{path.parent.name}/{path.name}"))

    arrays, statistics, random, by_chance = {}, [], {}, []
    for i, (model, name, _) in enumerate(models):
        grid = tuple(model.patch_embed.grid_size)
        try:
            if args.image_size:
                vit.set_image_size(model, args.image_size)
            similarity = position_similarity(model.to(device)).cpu()
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from error
        arrays[f"similarity_{i}" if i else "similarity"] = similarity.numpy()
        statistics.append(position_statistics(similarity))
        shape, channels = tuple(similarity.shape[:2]), model.pos_embed.shape[-1]
        resampled = f", resampled to {shape[0]}x{shape[1]}" if shape != grid else ""
        baseline = f"{RANDOM} random embeddings, {grid[0]}x{grid[1]} of {channels}{resampled}"
        if baseline not in random:
            random[baseline] = random_statistics(grid, channels, shape, RANDOM)
        by_chance.append(random[baseline]["nearest_adjacent"].mean())

    *_, titles = zip(*models)
    names = [title.replace("\n", " ") for title in titles]
    similarities = list(arrays.values())
    differences = ["", *(difference(similarities[0], other) for other in similarities[1:])]
    with written_whole(args.output.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays, titles=names, adjacent_by_chance=by_chance)
    with written_whole(args.output) as temporary:
        draw_similarities(similarities, statistics, random, titles, temporary, differences)
    print("same row  same column  elsewhere  most similar one adjacent")
    for values, name in zip(statistics, names):
        print(as_row(values), name)
    for baseline, draws in random.items():
        for reduce, name in ((np.mean, f"mean of {baseline}"), (np.max, "the highest of them")):
            print(as_row({kind: reduce(values) for kind, values in draws.items()}), name)
    for line, name in zip(differences[1:], names[1:]):
        print(f"{name}: {line}")
    print(f"{args.output} and {args.output.with_suffix('.npz')}")


def difference(similarity, other):
    """How far the similarities (H, W, H, W) of another model are from those of the first, in words."""
    if similarity.shape != other.shape:
        return "another grid than the first model's"
    apart = abs(other - similarity)
    return f"similarities differ from the first model's by at most {apart.max():.2g}, mean {apart.mean():.2g}"


def as_row(values):
    """The numbers of `position_statistics` as a line of the printed table."""
    return (f"{values['same_row']:8.3f}  {values['same_column']:11.3f}  {values['elsewhere']:9.3f}  "
            f"{values['nearest_adjacent']:25.1%} ")


if __name__ == "__main__":
    sys.exit(main())
