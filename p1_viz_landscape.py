"""Draw how flat the minimum of each checkpoint is, and say whether SAM found flatter ones.

    python p1_viz_landscape.py runs/adam/best.pt runs/sam/best.pt --data p1_data --output figures/landscape.png
    python p1_viz_landscape.py runs/*/best.pt --data demo --images 256 --batch-size 32 --output figures/landscape.pdf

The loss is that of training: the mean cross-entropy on photos of DIR/train, the same for all checkpoints and without
augmentation, fp32. Photos that a checkpoint held out to choose its epoch are left out. Drawn and printed are

- the loss along one and over two random directions, normalised by filter (Li et al. 2018): at a distance of 1 every
  filter has been moved by its own length. All checkpoints are moved by the same vectors, in units of the mean of their
  norms.
- how far the loss rises at SAM's perturbation rho * g / ||g|| (Foret et al. 2020): for each batch by itself, as SAM has
  it in training, and of all photos at once.
- the largest eigenvalues of the Hessian, for each batch.

SAM counts as flatter if both its largest eigenvalue and its rise at the --rho nearest to 0.05 are lower in every batch;
of several checkpoints with SAM and several without, means are compared, and the two kinds may not overlap.

FILE.npz holds the arrays, for C checkpoints, B batches and H of them for the Hessian, R rhos and K eigenvalues:

    names, kinds (C)                      as in the figure; the optimizer, such as adam or SAM(adam)
    loss (C)                              at the weights as they are
    alphas (P), loss_1d (C, P)            along the first direction
    grid_alphas (G), loss_2d (C, G, G)    [c, i, j]: grid_alphas[j] along the first, grid_alphas[i] along the second
    rhos (R), rise (C, B, R)              of each batch along its own gradient
    rise_full (C, R)                      of all photos along their gradient
    eigenvalues (C, H, K)                 largest first
    images                                the names of the photos, in the order of the batches

A ViT-Tiny takes about 7 minutes a checkpoint on 2 cores, timm's test_vit half a minute.
"""

import argparse
import math
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, number, picture_file, reports_errors
from common.errors import BadInput
from datasets import decode, transforms
from engine.flags import optimizer_name

USUAL_RHO = 0.05  # where checkpoints are compared


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINTS", help="of p1_train.py, all of one architecture")
    add("--data", required=True, metavar="DIR", help="the folder with train/ that they were trained on; or `demo`")
    add("--output", type=picture_file, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    add("--images", type=number(int, low=2, high=10**7), default=64, metavar="N",
        help="photos, drawn evenly from the classes (%(default)s)")
    add("--batch-size", type=number(int, low=1, high=10**6), default=16, metavar="N",
        help="photos a batch; the Hessian needs several times the memory of training (%(default)s)")
    add("--seed", type=number(int, low=0, high=2**32 - 1), default=0, metavar="N",
        help="decides the photos and the directions (%(default)s)")
    add("--workers", type=number(int, low=0, high=256), metavar="N",
        help="processes that load images (one a core, at most 8)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is the GPU where there is one")
    add("--skip-bad", action="store_true", help="go on without files that cannot be used")

    add = parser.add_argument_group("what is measured").add_argument
    add("--span", type=number(float, above=0), default=0.3, metavar="X",
        help="how far the directions reach to both sides, in filter norms: 0.1 to 1; a fine-tuned ViT is at chance "
             "by 0.5 (%(default)s)")
    add("--points", type=number(int, low=3, high=10**4), default=21, metavar="N", help="on the curve (%(default)s)")
    add("--grid", type=number(int, low=3, high=10**3), default=9, metavar="N",
        help="points along each side of the contours (%(default)s)")
    add("--rho", type=number(float, above=0), nargs="+", default=[0.01, 0.02, 0.05, 0.1, 0.2], metavar="X",
        help="lengths of the step along the gradient (0.01 0.02 0.05 0.1 0.2)")
    add("--eigenvalues", type=number(int, low=1, high=100), default=3, metavar="K", help="how many (%(default)s)")
    add("--hessian-batches", type=number(int, low=1, high=10**6), default=4, metavar="N",
        help="batches of which the Hessian is taken, each by itself (%(default)s)")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np
    import torch
    from tqdm import tqdm

    from common.files import refuse_unwritable, written_whole
    from datasets import images, shapes
    from engine.device import loader_workers, pick_device
    from interpret import landscape
    from models.checkpoint import open_checkpoint
    from plots.landscape import draw_landscapes

    device = pick_device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32 on a GPU, too
    checkpoints = [open_checkpoint(path) for path in args.checkpoints]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for what in ("arch", "labels", "preprocessing"):
            if getattr(other, what) != getattr(first, what):
                raise BadInput(f"{other.path} and {first.path} differ in {what}: compare checkpoints that share it")
    names, kinds = names_of(args.checkpoints), [optimizer_name(checkpoint.settings) for checkpoint in checkpoints]

    # Photos
    data = shapes.write_dataset(shapes.DEMO_DATA) if args.data == "demo" else Path(args.data)
    folder = images.read_training_folder(data / "train", data / "classes.txt", args.skip_bad)
    unknown = [label for label in folder.labels if label not in first.labels]
    if unknown:
        raise BadInput(f"{folder.root} holds the label {unknown[0]}, which {first.path} does not know: name the folder "
                       "that it was trained on")
    trained_on = set(range(len(folder.names)))
    for checkpoint in checkpoints:
        trained_on &= set(fitted(folder.targets, checkpoint.settings))
    if not trained_on:
        raise BadInput(f"{folder.root} has no photo that all checkpoints were trained on: name fewer of them")
    folder = folder.keep(sorted(trained_on))
    if args.images > len(folder.names):
        note(f"{folder.root} has {len(folder.names)} photos that all checkpoints were trained on: all are taken")
    chosen = folder.keep(evenly(folder.targets, args.images, args.seed))
    refuse_unwritable(args.output, args.output.with_suffix(".npz"))
    targets = [first.labels.index(folder.labels[target]) for target in chosen.targets]
    dataset = images.ImageDataset(folder.root, chosen.names, targets, transforms.evaluation_transform(first.preprocessing))
    loader = torch.utils.data.DataLoader(dataset, args.batch_size, num_workers=loader_workers(args.workers))
    with decode.explaining_bad_images(folder.root, chosen.names):
        batches = [(inputs.to(device), targets.to(device)) for inputs, targets in loader]

    # Measuring
    for checkpoint in checkpoints:
        checkpoint.model.to(device)
    weights = [landscape.weights_of(checkpoint.model) for checkpoint in checkpoints]
    losses = [landscape.classification_loss(checkpoint.model) for checkpoint in checkpoints]
    at_minimum = [landscape.mean_loss(loss, w, batches) for loss, w in zip(losses, weights)]
    for checkpoint, value in zip(checkpoints, at_minimum):
        if not math.isfinite(value):
            raise BadInput(f"{checkpoint.path}: its weights give outputs that are not finite: it is damaged")
    directions = landscape.random_directions(weights, 2, args.seed)
    alphas, grid_alphas = (np.linspace(-args.span, args.span, n) for n in (args.points, args.grid))
    arrays = {"names": np.array(names), "kinds": np.array(kinds), "loss": np.array(at_minimum), "alphas": alphas,
              "grid_alphas": grid_alphas, "rhos": np.array(args.rho), "images": np.array(chosen.names)}
    measured = {key: [] for key in ("loss_1d", "loss_2d", "rise", "rise_full", "eigenvalues")}
    for name, loss, w in zip(names, losses, weights):
        with tqdm(desc=f"{name}: loss", total=args.points + args.grid**2, unit=" points") as bar:
            line = landscape.losses_along(loss, w, batches, directions[0], alphas, bar.update)
            area = landscape.losses_over(loss, w, batches, directions, grid_alphas, bar.update)
        refuse_nonfinite("--span", line, area)
        every = [landscape.rises(loss, w, part, args.rho)
                 for part in tqdm([*([batch] for batch in batches), batches], desc=f"{name}: rise", unit=" gradients")]
        refuse_nonfinite("--rho", *every)
        with tqdm(desc=f"{name}: Hessian", unit=" products") as bar:  # how many Lanczos needs is not known
            eigenvalues = [landscape.largest_eigenvalues(loss, w, batch, args.eigenvalues, args.seed, tick=bar.update)
                           for batch in batches[:args.hessian_batches]]
        for key, value in (("loss_1d", line), ("loss_2d", area), ("rise", every[:-1]), ("rise_full", every[-1]),
                           ("eigenvalues", eigenvalues)):
            measured[key].append(value)
    arrays.update((key, np.array(values)) for key, values in measured.items())

    with written_whole(args.output.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays)
    with written_whole(args.output) as temporary:
        title = (f"Training loss of {first.arch} around its weights, on {len(chosen.names)} photos of "
                 f"{len(set(chosen.targets))} classes")
        draw_landscapes([f"{name}: {kind}" for name, kind in zip(names, kinds)], kinds, arrays, title, temporary)
    for i, name in enumerate(names):
        print(f"{name}: {kinds[i]}, loss {at_minimum[i]:.4f}, up to {arrays['loss_2d'][i].max():.3f} within "
              f"{args.span:g} filter norms")
        print("  rise of the loss: " + "; ".join(
            f"{spread(arrays['rise'][i, :, r])}, of all photos at once {arrays['rise_full'][i, r]:.3g}, at rho {rho:g}"
            for r, rho in enumerate(args.rho)))
        print("  eigenvalues: " + "; ".join(spread(values) for values in arrays["eigenvalues"][i].T))
    nearest = min(range(len(args.rho)), key=lambda r: abs(math.log(args.rho[r] / USUAL_RHO)))
    print(verdict(names, ["SAM" in kind for kind in kinds], {
        "largest eigenvalue": arrays["eigenvalues"][:, :, 0],
        f"rise of the loss at rho {args.rho[nearest]:g}": arrays["rise"][:, :, nearest]}))
    print(f"{args.output} and {args.output.with_suffix('.npz')}")
    return 0


def names_of(paths):
    """A name for each checkpoint: that of its run's folder where all files are called alike, else the file's."""
    alike = len({path.name for path in paths}) == 1
    names = [path.resolve().parent.name if alike else path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def fitted(targets, settings):
    """The indices of the photos of a training folder that a run with these settings was trained on."""
    from datasets.images import stratified_holdout

    try:
        return stratified_holdout(targets, settings["holdout"], settings["seed"])[0]
    except BadInput:  # one photo a class, so that the run had another folder, and held out nothing of this one
        return range(len(targets))


def evenly(targets, count, seed):
    """The indices of `count` images (of all, if there are fewer), chosen by `seed`, evenly from the classes.

    So is every part of them from the start: first come images of different classes, until there is one of each.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    rank = np.empty(len(targets), int)
    for target in set(targets):
        members = rng.permutation(np.flatnonzero(np.equal(targets, target)))
        rank[members] = range(len(members))
    return np.lexsort((rng.random(len(targets)), rank))[:count].tolist()


def refuse_nonfinite(flag, *losses):
    """BadInput where losses (arrays) are inf or NaN, so far away did a flag lead."""
    if not all(math.isfinite(value) for array in losses for value in array.flat):
        raise BadInput(f"{flag} leads to where the loss is not finite: pass a smaller one")


def spread(values):
    """A mean over batches, with the least and the most of them."""
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


def verdict(names, with_sam, measures):
    """One line that says whether SAM was flatter, or else ranks the checkpoints.

    `measures` are arrays (checkpoints, batches) by name, lower where it is flatter; `with_sam` says which checkpoints
    SAM trained. A measure speaks for a side if its mean over that side's checkpoints is lower in every batch and, over
    all batches, each of these checkpoints lower than each of the others.
    """
    if len(names) == 1:
        return "one checkpoint, with nothing to compare it to"
    if len(set(with_sam)) == 1:
        return "from flat to sharp " + "; ".join(
            f"by {measure}: " + ", ".join(f"{names[i]} {spread(values[i])}" for i in values.mean(1).argsort())
            for measure, values in measures.items())
    said, signs = [], set()
    for measure, values in measures.items():
        sam = values[[i for i, used in enumerate(with_sam) if used]]
        plain = values[[i for i, used in enumerate(with_sam) if not used]]
        lower, batches = sam.mean(0) < plain.mean(0), values.shape[1]
        words = (f"{measure} {spread(sam.mean(0))} against {spread(plain.mean(0))}, lower in {lower.sum()} of "
                 f"{batches} batch{'es' * (batches > 1)}")
        flatter = lower.all() and sam.mean(1).max() < plain.mean(1).min()
        sharper = not lower.any() and sam.mean(1).min() > plain.mean(1).max()
        if not (flatter or sharper) and (lower.all() or not lower.any()):
            words += ", though checkpoints of both kinds overlap"
        said.append(words)
        signs.add("flatter" if flatter else "sharper" if sharper else "unclear")
    start = "no clear difference here"
    if "unclear" not in signs:
        start = "the measures disagree" if len(signs) > 1 else \
            "SAM was flatter here" if "flatter" in signs else "SAM was not flatter here"
    return f"{start}: {'; '.join(said)}"


if __name__ == "__main__":
    sys.exit(main())
