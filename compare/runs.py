"""Run folders, read into evaluated runs and grouped into settings of several seeds."""

import csv
import json
import shlex
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import sha256
from compare.comparisons import Comparisons, group_by
from compare.names import key, numbered, short_names, slugs
from compare.statistics import expected_calibration_error, reliability
from engine.flags import current_settings

FEWEST_PHOTOS = 10  # in a bin of confidence
COLUMNS = ("epoch", "train_loss", "train_accuracy", "holdout_accuracy", "images_per_second", "seconds",
           "passes", "peak_memory_mib")


class Study:
    """Run folders side by side: `runs`, and their `settings`, in the order of the first runs.

    `left_out` has a line, with what to do, for each folder that is not finished, or not evaluated with the
    best.pt that is there now; of a copy without weights the evaluation counts as it is. Raises BadInput for
    other and damaged folders, if no run is left, and for two runs of one setting with the same seed, or on
    different images.
    """

    def __init__(self, folders):
        self.runs, self.left_out = [], []
        for folder in map(Path, folders):
            try:
                self.runs.append(_read_run(folder))
            except LeftOut as reason:
                self.left_out.append(f"{folder} {reason}")
        if not self.runs:
            raise BadInput("none of the runs can be used: do what stands below", self.left_out)
        groups = group_by(self.runs, lambda run: key(run.settings)).values()
        for one, other in (pair for group in groups for pair in combinations(group, 2)):
            both, seed = f"{one.folder} and {other.folder} are runs of one setting", one.settings.get("seed")
            if seed == other.settings.get("seed"):
                raise BadInput(f"{both} with the same seed, {seed}: leave one out")
            if one.images != other.images:
                raise BadInput(f"{both}, evaluated on different images: evaluate both on the same ones")
        self.settings = _named(groups)
        self.comparisons = Comparisons(self.settings)


@dataclass(frozen=True)
class ImageSet:
    """The labelled images of an evaluation: `targets[i]` is the index in `labels` of the image `names[i]`."""

    names: tuple
    targets: tuple
    labels: tuple
    class_names: tuple = field(compare=False)
    folder: Path = field(compare=False)  # a data set may have been moved


class EvaluatedRun:
    """A finished and evaluated run, of what config.json, metrics.csv and the evaluation say.

    `history` has arrays (epochs,), NaN where a field is empty; `probabilities` are (images, classes), of the
    best.pt with that `checkpoint_sha256`.
    """

    def __init__(self, folder, config, history, images, probabilities, checkpoint_sha256):
        self.folder, self.history, self.images, self.probabilities = folder, history, images, probabilities
        self.checkpoint_sha256 = checkpoint_sha256
        self.settings = current_settings(config["settings"])
        self.model = config.get("model") or {}  # parameters, width, heads, depth
        self.probe_seconds = (config.get("probe") or {}).get("seconds", 0.0)
        # (images,)
        self.predicted, self.confidence = probabilities.argmax(1), probabilities.max(1)
        self.correct = self.predicted == np.array(images.targets)
        # (epochs,): the accuracy held out, or in training where nothing was; the passes up to an epoch's end
        self.held_out = bool(np.isfinite(history["holdout_accuracy"]).all())
        self.learning_curve = history["holdout_accuracy" if self.held_out else "train_accuracy"]
        self.cumulative_passes = history["passes"].cumsum()

    def time_to(self, accuracy, unit):
        """When the learning curve first reaches an accuracy, in `epochs` or `passes`; infinite if never."""
        reached = self.learning_curve >= accuracy
        elapsed = {"epochs": self.history["epoch"], "passes": self.cumulative_passes}[unit]
        return elapsed[reached.argmax()] if reached.any() else np.inf

    @cached_property
    def quantities(self):
        """The numbers that settings are compared by, a dict of floats.

        `train_accuracy` is the last epoch's, measured during the epoch and augmented, and `gap` that minus
        the accuracy on val; `held_out_accuracy` the best epoch's, whose weights are in best.pt.
        """
        history, accuracy = self.history, self.correct.mean()
        # the later one of ties
        best_epoch = -1 - history["holdout_accuracy"][::-1].argmax() if self.held_out else -1
        seconds = history["seconds"]
        return {"accuracy": accuracy,
                "ece": expected_calibration_error(self.confidence, self.correct),
                "train_accuracy": history["train_accuracy"][-1],
                "gap": history["train_accuracy"][-1] - accuracy,
                "held_out_accuracy": history["holdout_accuracy"].max(),
                "best_epoch": history["epoch"][best_epoch],
                "epochs_to_95": self.time_to(0.95 * self.learning_curve[-1], "epochs"),
                "passes": history["passes"].sum(),
                "images_per_second": (np.average(history["images_per_second"], weights=seconds)
                                      if seconds.sum() else np.nan),
                "minutes": (self.probe_seconds + seconds.sum()) / 60,
                "peak_memory_mib": history["peak_memory_mib"].max()}


class Setting:
    """Runs that differ in their seeds alone; `slug` is for files' names, `image_set` names the `images`."""

    def __init__(self, name, slug, image_set, runs):
        self.name, self.slug, self.image_set, self.runs = name, slug, image_set, runs
        self.settings, self.model = runs[0].settings, runs[0].model
        self.images, self.held_out = runs[0].images, runs[0].held_out
        self.correct = np.stack([run.correct for run in runs])  # bool (runs, images)

    def values(self, quantity):
        """One of the runs' `quantities`, float (runs,)."""
        return np.array([run.quantities[quantity] for run in self.runs])

    def mean(self, quantity):
        return self.values(quantity).mean()


def _named(groups):
    """Settings of groups of runs, and their names."""
    names = short_names(groups)
    image_sets = list(dict.fromkeys(runs[0].images for runs in groups))
    folders = ["/".join(images.folder.parts[-2:]).lstrip("/") for images in image_sets]
    set_names = dict(zip(image_sets, numbered(folders, "{} ({})")))
    return [Setting(name, slug, set_names[runs[0].images], runs)
            for name, slug, runs in zip(names, slugs(names), groups)]


class LeftOut(Exception):
    """Why a run folder is left out, and what to do: what follows its name in a line."""


def _read_run(folder):
    file = folder / "config.json"
    if not file.is_file():
        problem = "is not a run folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder} {problem}: name output folders of p1_train.py")
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
        settings, planned = config["settings"], int(config["settings"]["epochs"])
        if "arch" not in settings:
            raise BadInput(f"{folder} is no run of p1_train.py: leave it out")
        file = folder / "metrics.csv"
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.exists() else []
        rows = list(csv.DictReader(lines))
        history = {name: np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is damaged: leave {folder} out or train it again") from error
    if len(rows) < planned:
        command = _resume_command(config.get("command"), settings, folder)
        held_out = "".join(f", held out {accuracy:.3f}" for accuracy in history["holdout_accuracy"][-1:]
                           if np.isfinite(accuracy))
        raise LeftOut(f"is not finished ({len(rows)} of {planned} epochs{held_out}): {command}")
    try:
        return EvaluatedRun(folder, config, history, *_read_evaluation(folder))
    except LeftOut as reason:
        data = "data/demo" if settings.get("data") == "demo" else settings.get("data", "DATA")
        command = ["python", "p1_eval.py", f"{Path(data) / 'val'}", "--checkpoint", f"{folder / 'best.pt'}"]
        raise LeftOut(f"{reason}: {shlex.join(command)}") from None


def _resume_command(command, settings, folder):
    command = shlex.split(command or f"p1_train.py --output {shlex.quote(str(folder))}")
    ranks = settings.get("processes") or 1
    launcher = ["python"] if ranks == 1 else ["torchrun", "--nproc-per-node", str(ranks)]
    return shlex.join([*launcher, *(part for part in command if part != "--resume"), "--resume"])


def _read_evaluation(folder):
    """(ImageSet, probabilities) of the labelled images, from the eval.json and eval.npz of one evaluation,
    and the SHA-256 of the best.pt that it is of.
    """
    if not ((folder / "eval.json").is_file() and (folder / "eval.npz").is_file()):
        raise LeftOut("was not evaluated")
    best = folder / "best.pt"
    try:
        scores = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        with np.load(folder / "eval.npz", allow_pickle=False) as arrays:
            names, targets, probabilities, labels, class_names, source = (arrays[name] for name in (
                "names", "targets", "probabilities", "labels", "class_names", "folder"))
        if probabilities.shape != (len(names), len(labels)):
            raise ValueError("not a probability for each class")
        labelled = targets >= 0
        columns = names[labelled], targets[labelled], labels, class_names
        images = ImageSet(*(tuple(column.tolist()) for column in columns), Path(str(source)))
        counts = len(targets), len(images.names), int((probabilities.argmax(1) == targets).sum())
        problems = {
            "was evaluated with an older best.pt":
                best.is_file() and scores["checkpoint_sha256"] != sha256(best),
            "was evaluated with --flip, which is no more": scores.get("flip"),
            "has an eval.json and an eval.npz of different evaluations":
                counts != (scores["images"], scores["labelled"], scores["correct"]),
            "was evaluated on images without labels": not images.names}
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        raise LeftOut("has a damaged evaluation") from None
    for problem, holds in problems.items():
        if holds:
            raise LeftOut(problem)
    return images, probabilities[labelled].astype(np.float64), scores["checkpoint_sha256"]


def settings_curves(settings):
    """What plots.curves.draw_settings_curves takes."""
    return [{"name": setting.name, "epochs": setting.runs[0].history["epoch"],
             "passes": np.mean([run.cumulative_passes for run in setting.runs], 0),
             "loss": np.stack([run.history["train_loss"] for run in setting.runs]),
             "training": np.stack([run.history["train_accuracy"] for run in setting.runs]),
             "held_out": np.stack([run.learning_curve for run in setting.runs]) if setting.held_out else None,
             "val": (setting.mean("accuracy"), setting.mean("best_epoch"))} for setting in settings]


def reliability_curves(settings):
    """What plots.calibration.draw_reliability takes: bins of fewer than ten photos say nothing."""
    curves = []
    for setting in settings:
        confidence = np.concatenate([run.confidence for run in setting.runs])
        bins = np.array(reliability(confidence, setting.correct.ravel()))
        kept = bins[:, bins[0] >= FEWEST_PHOTOS * len(setting.runs)]
        curves.append((f"{setting.name}\nECE {setting.mean('ece'):.3f}", *kept))
    return curves
