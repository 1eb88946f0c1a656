"""Checkpoints compared by how flat their minima are: the photos, the measures, and the verdict on SAM."""

import math
from itertools import product

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.cli import note
from common.errors import BadInput
from common.files import nfc
from common.unfinished import Unfinished
from compare.comparisons import SAM_ALONE, differing, side_by_side
from datasets.decode import explaining_bad_images
from datasets.images import ImageDataset, stratified_holdout
from datasets.transforms import evaluation_transform
from engine.flags import current_settings
from interpret import landscape

POINTS, GRID = 21, 9  # along the curve, and along each side of the contours
HESSIAN_BATCHES = 4  # of which eigenvalues are taken
FEWEST_BATCHES = 3  # for a verdict
USUAL_RHO = 0.05  # where the rise of checkpoints is compared


def refuse_unlike(checkpoints, one_preprocessing=False):
    """Raise BadInput for checkpoints that cannot be compared; `one_preprocessing` allows another crop."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        both = f"{other.path} and {first.path}"
        for what in ("arch", "labels"):
            if getattr(other, what) != getattr(first, what):
                raise BadInput(f"{both} differ in {what}: compare ones that share it")
        names = [name for name, value in first.preprocessing.items() if other.preprocessing[name] != value]
        values = ", ".join(f"{name.removesuffix('_pct').replace('_', ' ')} {other.preprocessing[name]} "
                           f"against {first.preprocessing[name]}" for name in names)
        if "input_size" in names:
            raise BadInput(f"{both} differ in preprocessing ({values}): compare ones of one size")
        if names and not one_preprocessing:
            raise BadInput(f"{both} differ in preprocessing ({values}): pass --one-preprocessing to give all "
                           "that of the first")


def choose_photos(folder, checkpoints, count, seed):
    """`count` images of a LabelledFolder that all checkpoints were trained on, `evenly` from the classes.

    Raises BadInput for a label that the checkpoints do not know, and where there is no such image.
    """
    first = checkpoints[0]
    known = set(map(nfc, first.labels))
    if unknown := [label for label in folder.labels if nfc(label) not in known]:
        raise BadInput(f"{folder.root} holds the label {unknown[0]}, which {first.path} does not know: "
                       "name the folder that it was trained on")
    common = set.intersection(*(trained_on(folder.targets, each.settings) for each in checkpoints))
    if not common:
        raise BadInput(f"{folder.root} has no photo that all checkpoints were trained on: name fewer of them")
    if count > len(common):
        note(f"{folder.root} has {len(common)} photos that all checkpoints were trained on: all are taken")
    folder = folder.keep(sorted(common))
    return folder.keep(evenly(folder.targets, count, seed))


def trained_on(targets, settings):
    """The indices, a set, of a training folder's images that a run with these settings was trained on."""
    try:
        return set(stratified_holdout(targets, settings["holdout"], settings["seed"])[0])
    except BadInput:  # one image a class: the run had another folder, and held out nothing of this one
        return set(range(len(targets)))


def evenly(targets, count, seed):
    """The indices of `count` images, or of all, drawn by `seed`: one of each class, and again."""
    rng = np.random.default_rng(seed)
    rank = np.empty(len(targets), int)
    for target in set(targets):
        members = rng.permutation(np.flatnonzero(np.equal(targets, target)))
        rank[members] = range(len(members))
    return np.lexsort((rng.random(len(targets)), rank))[:count].tolist()


def load_batches(folder, checkpoint, batch_size, device):
    """The images of a LabelledFolder, preprocessed for a checkpoint's model: a list of (inputs, targets)."""
    labels = list(map(nfc, checkpoint.labels))
    targets = [labels.index(nfc(folder.labels[target])) for target in folder.targets]
    dataset = ImageDataset(folder.root, folder.names, targets, evaluation_transform(checkpoint.preprocessing))
    with explaining_bad_images(folder.root, folder.names):
        return [[part.to(device) for part in batch] for batch in DataLoader(dataset, batch_size)]


def measure(checkpoints, names, batches, span, rhos, seed, eigenvalues=3, unfinished=None):
    """The arrays of p1_viz_landscape.py from `loss` to `eigenvalues`; `names` are for the progress bars.

    All are moved along the same two directions, of `seed`. An `Unfinished` keeps what is measured, piece by
    piece; the Hessian, which takes longest, comes last. Raises BadInput where a loss is not finite.
    """
    unfinished = unfinished or Unfinished(None)
    finished = dict(unfinished.rows)
    alphas, grid_alphas = np.linspace(-span, span, POINTS), np.linspace(-span, span, GRID)
    weights = [landscape.weights_of(checkpoint.model) for checkpoint in checkpoints]
    losses = [landscape.classification_loss(checkpoint.model) for checkpoint in checkpoints]
    means = [landscape.mean_loss(loss, start, batches) for loss, start in zip(losses, weights)]
    for mean, checkpoint in zip(means, checkpoints):
        if not math.isfinite(mean):
            raise BadInput(f"{checkpoint.path}: its weights give outputs that are not finite: it is damaged")
    directions = landscape.random_directions(weights, 2, seed)

    def piece(what, compute, *arguments, along=None, unit=None):
        """`compute(*arguments)`, an array, unless an interrupted call has finished it.

        The last argument is `along`, where it is given, behind a progress bar.
        """
        if what not in finished:
            if along is not None:
                arguments = *arguments, tqdm(along, what, unit=unit)
            finished[what] = torch.from_numpy(np.array(compute(*arguments)))
            unfinished.append((what, finished[what]))
        return finished[what].numpy()

    rows = {"loss_1d": [], "loss_2d": [], "rise": [], "rise_full": []}
    for name, loss, start in zip(names, losses, weights):
        rows["loss_1d"].append(piece(f"{name}: loss", landscape.losses_along, loss, start, batches,
                                     directions[0], along=alphas, unit=" points"))
        rows["loss_2d"].append(piece(f"{name}: contours", landscape.losses_over, loss, start, batches,
                                     directions, grid_alphas, along=grid_alphas, unit=" rows"))
        _refuse_nonfinite("--span", rows["loss_1d"][-1], rows["loss_2d"][-1])
        parts = tqdm([*([batch] for batch in batches), batches], f"{name}: rise", unit=" gradients")
        *rise, full = (piece(f"{name}: rise {i}", landscape.rises, loss, start, part, rhos)
                       for i, part in enumerate(parts))
        _refuse_nonfinite("--rho", *rise, full)
        rows["rise"].append(rise)
        rows["rise_full"].append(full)
    of_batches = [(f"{name}: {eigenvalues} of {i}", landscape.largest_eigenvalues, loss, start, batch,
                   eigenvalues, seed) for name, loss, start in zip(names, losses, weights)
                  for i, batch in enumerate(batches[:HESSIAN_BATCHES]) if eigenvalues]
    rows["eigenvalues"] = np.reshape(
        [piece(*each) for each in tqdm(of_batches, "Hessian", unit=" batches", disable=not eigenvalues)],
        (len(checkpoints), len(batches[:HESSIAN_BATCHES]), eigenvalues))
    return {"alphas": alphas, "grid_alphas": grid_alphas, "rhos": np.array(rhos), "loss": np.array(means),
            **{key: np.array(values) for key, values in rows.items()}}


def _refuse_nonfinite(flag, *losses):
    if not all(np.isfinite(array).all() for array in losses):
        raise BadInput(f"{flag} leads to where the loss is not finite: pass a smaller one")


def measures(arrays):
    """What the arrays say, lower where it is flatter: arrays (C, B) by name; B is 1 for all at once."""
    loss = arrays["loss"][:, None]
    by_name = {"loss": loss, "highest rise nearby": arrays["loss_2d"].max((1, 2))[:, None] - loss}
    for r, rho in enumerate(arrays["rhos"]):
        by_name[f"rise at rho {rho:g}"] = arrays["rise"][:, :, r]
        by_name[f"rise at rho {rho:g}, all photos"] = arrays["rise_full"][:, r, None]
    for k in range(arrays["eigenvalues"].shape[2]):
        by_name[f"eigenvalue {k + 1}"] = arrays["eigenvalues"][:, :, k]
    return by_name


def compare_sam(arrays):
    """SAM's checkpoints against the others: largest eigenvalue, and rise at the rho nearest to USUAL_RHO.

    A list of (measure, sam (B,), plain (B,), verdict), with means over checkpoints; empty where all or none
    are SAM's. The verdict is `flatter` where sam is lower in every batch, and each checkpoint of SAM's lower
    than each other one in the mean; `sharper` for the opposite; `overlap` where only batches agree; else
    `unclear`.
    """
    with_sam = np.array(["SAM" in kind for kind in arrays["kinds"]])
    if with_sam.all() or not with_sam.any():
        return []
    nearest = min(arrays["rhos"], key=lambda rho: abs(math.log(rho / USUAL_RHO)))
    by_name, rows = measures(arrays), []
    for name in ("eigenvalue 1", f"rise at rho {nearest:g}"):
        if name not in by_name:
            continue  # no eigenvalues were taken
        sam, plain = by_name[name][with_sam], by_name[name][~with_sam]
        lower, verdict = sam.mean(0) < plain.mean(0), "unclear"
        if lower.all():
            verdict = "flatter" if sam.mean(1).max() < plain.mean(1).min() else "overlap"
        elif not lower.any():
            verdict = "sharper" if sam.mean(1).min() > plain.mean(1).max() else "overlap"
        rows.append((name, sam.mean(0), plain.mean(0), verdict))
    return rows


def overall(comparisons, checkpoints):
    """What the verdicts of `compare_sam` come to; why there is none, where the runs cannot say it of SAM."""
    settings = [current_settings(checkpoint.settings) for checkpoint in checkpoints]
    plain, with_sam = ([one for one in settings if bool(one["sam"]) == sam] for sam in (False, True))
    for one, other in product(plain, with_sam):
        if names := [name for name in differing(one, other) if name not in SAM_ALONE]:
            return ("no verdict on SAM: without and with it the runs also differ in "
                    f"{side_by_side(names, one, other)}")
    batches = min(len(sam) for _, sam, *_ in comparisons)
    if batches < FEWEST_BATCHES:
        return (f"no verdict from {batches} batch{'es' * (batches > 1)}: {FEWEST_BATCHES} are needed, with "
                "more --images or a smaller --batch-size")
    verdicts = {verdict for *_, verdict in comparisons}
    if verdicts == {"flatter"}:
        return "SAM was flatter here"
    if verdicts == {"sharper"}:
        return "SAM was not flatter here"
    return "the measures disagree" if verdicts == {"flatter", "sharper"} else "no clear difference here"
