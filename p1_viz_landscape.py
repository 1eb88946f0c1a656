"""Draw how flat the minimum of each checkpoint is, and say whether SAM found flatter ones.

    python p1_viz_landscape.py runs/adam/best.pt runs/sam/best.pt --data p1_data --output landscape.png
    python p1_viz_landscape.py runs/*/best.pt --data demo --images 256 --output figures/landscape.pdf

The loss is the mean cross-entropy on photos of DIR/train that all checkpoints were trained on, without
augmentation, fp32. Drawn and printed are

- the loss along one and over two random directions, normalised by filter (Li et al. 2018): at a distance of 1
  every filter has been moved by its length (the mean over checkpoints, which all move by the same vectors).
- how far the loss rises at SAM's perturbation rho * g / ||g|| (Foret et al. 2020): for each batch by itself,
  as SAM has it in training, and of all photos at once.
- the largest eigenvalues of the Hessian, for each of the first 4 batches, which takes most of the time.

SAM counts as flatter if both its largest eigenvalue and its rise at the --rho nearest to 0.05 (with
--eigenvalues 0 the rise alone) are lower in every batch; of several checkpoints on a side means are compared,
and the two sides may not overlap. There is no verdict from fewer than 3 batches, nor on runs that differ in
more than SAM and its flags.

FILE.npz holds, for C checkpoints, B batches and R rhos:

    names, kinds (C)                         as in the figure; the optimizer, such as adam or SAM(adam)
    loss (C)                                 at the weights as they are
    alphas (21), loss_1d (C, 21)             along the first direction
    grid_alphas (9), loss_2d (C, 9, 9)       [c, i, j]: grid_alphas[j] along the first, [i] along the second
    rhos (R), rise (C, B, R)                 of each batch along its own gradient
    rise_full (C, R)                         of all photos along their gradient
    eigenvalues (C, 4, K)                    of each batch, largest first
    images                                   the names of the photos, in the order of the batches

A ViT-Tiny takes about 7 minutes a checkpoint on 2 cores, timm's test_vit half a minute.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, number, picture_file, reports_errors


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINTS", help="of p1_train.py, of one arch")
    add("--data", required=True, metavar="DIR", help="the folder with train/ of their training; or `demo`")
    add("--output", type=picture_file, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    add("--images", type=number(int, low=2, high=10**7), default=64, metavar="N",
        help="photos, drawn evenly from the classes (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N",
        help="photos a batch; the Hessian needs several times the memory of training (%(default)s)")
    add("--seed", type=number(int, low=0, high=2**32 - 1), default=0, metavar="N",
        help="random seed: photos and directions (%(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")
    add("--one-preprocessing", action="store_true",
        help="crop and normalise the photos for all checkpoints as for the first")

    add = parser.add_argument_group("what is measured").add_argument
    add("--span", type=number(float, above=0), default=0.3, metavar="X",
        help="how far the directions reach, in filter norms; a ViT is at chance by 0.5 (%(default)s)")
    add("--rho", type=number(float, above=0), nargs="+", default=[0.01, 0.02, 0.05, 0.1, 0.2], metavar="X",
        help="lengths of the step along the gradient (0.01 0.02 0.05 0.1 0.2)")
    add("--eigenvalues", type=number(int, low=0, high=20), default=3, metavar="K",
        help="how many of the Hessian's; 0 leaves it out (%(default)s)")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np

    from common.files import refuse_unwritable, written_whole
    from common.unfinished import Unfinished, identity_of
    from datasets import images, shapes
    from engine.device import keep_freed_memory, pick_device
    from engine.flags import optimizer_name
    from interpret import sharpness
    from models.checkpoint import open_checkpoint
    from plots.landscape import draw_landscapes

    device = pick_device(args.device)
    keep_freed_memory(device)
    checkpoints = [open_checkpoint(path) for path in args.checkpoints]
    sharpness.refuse_unlike(checkpoints, args.one_preprocessing)
    data = shapes.write_dataset(shapes.DEMO_DATA) if args.data == "demo" else Path(args.data)
    folder = images.read_training_folder(data / "train", data / "classes.txt", args.skip_bad)
    folder = sharpness.choose_photos(folder, checkpoints, args.images, args.seed)
    arrays_file = args.output.with_suffix(".npz")
    refuse_unwritable(args.output, arrays_file)
    batches = sharpness.load_batches(folder, checkpoints[0], args.batch_size, device)

    for checkpoint in checkpoints:
        checkpoint.model.to(device)
    names = names_of(args.checkpoints)
    unfinished = Unfinished(arrays_file, args.span, args.rho, args.seed, args.batch_size, device.type, names,
                            identity_of([each.path for each in checkpoints]
                                        + [folder.root / name for name in folder.names]))
    arrays = {"names": names, "kinds": [optimizer_name(checkpoint.settings) for checkpoint in checkpoints],
              "images": folder.names,
              **sharpness.measure(checkpoints, names, batches, args.span, args.rho, args.seed,
                                  args.eigenvalues, unfinished)}
    with written_whole(arrays_file) as temporary:
        np.savez_compressed(temporary, **arrays)
    with written_whole(args.output) as temporary:
        draw_landscapes(arrays, f"Training loss of {checkpoints[0].arch} around its weights, on "
                        f"{len(folder.names)} photos of {len(set(folder.targets))} classes", temporary)
    unfinished.remove()
    print_measures(names, arrays["kinds"], sharpness.measures(arrays))
    if comparisons := sharpness.compare_sam(arrays):
        print_comparisons(comparisons)
        print(sharpness.overall(comparisons, checkpoints))
    print(f"{args.output} and {arrays_file}")


def names_of(paths):
    """A name for each checkpoint: its run's folder where all files are called alike, else the file's."""
    alike = len({path.name for path in paths}) == 1
    names = [path.resolve().parent.name if alike else path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def print_measures(names, kinds, measures):
    """Print each measure (C, B) of all checkpoints, the lowest first."""
    width = max(map(len, ("checkpoint", *names))) + 2
    print(f"{'from low to high':30}{'checkpoint':{width}}{'optimizer':14}mean over batches (least to most)")
    for measure, values in measures.items():
        for i in values.mean(1).argsort():
            print(f"{measure:30}{names[i]:{width}}{kinds[i]:14}{spread(values[i])}")


def print_comparisons(comparisons):
    """Print SAM's checkpoints against the others, a row for each measure."""
    print(f"\n{'measure':20}{'with SAM':28}{'without':28}{'lower in':18}verdict")
    for measure, sam, plain, verdict in comparisons:
        batches = f"{(sam < plain).sum()} of {len(sam)} batches"
        print(f"{measure:20}{spread(sam):28}{spread(plain):28}{batches:18}{verdict}")


def spread(values):
    """A mean over batches, with the least and the most of them where there are several."""
    return f"{values.mean():.3g}" + f" ({values.min():.3g} to {values.max():.3g})" * (len(values) > 1)


if __name__ == "__main__":
    sys.exit(main())
