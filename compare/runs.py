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
from compare.names import BETWEEN_SEEDS, base_name, distinct_names, image_set_names, slugs
from compare.statistics import expected_calibration_error, reliability
from engine.flags import current_settings

COLUMNS = ("epoch", "train_loss", "train_accuracy", "holdout_accuracy", "images_per_second", "seconds",
           "passes", "peak_memory_mib")


class Study:
    """Run folders side by side: `runs`, and their `settings`, in the order of the first runs.

    `left_out` has a line for each other folder, why and what to do: those not finished, or not evaluated with
    the best.pt that is there now. Raises BadInput for a folder that is no run of p1_train.py, for damaged
    files, if no run is left, and where two runs of one setting have the same seed, or were evaluated on
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
        self.settings = _group(self.runs)
        self.comparisons = Comparisons(self.settings)


@dataclass(frozen=True)
class ImageSet:
    """The labelled images of an evaluation: `targets[i]` is the index in `labels` of the image `names[i]`.

    `folder` is where they were. It does not count when two sets are compared: a data set may have been moved.
    """

    names: tuple
    targets: tuple
    labels: tuple
    class_names: tuple = field(compare=False)
    folder: Path = field(compare=False)


@dataclass(eq=False)
class EvaluatedRun:
    """A finished and evaluated run.

    Attributes:
        folder, settings, model: its run folder, and what config.json says; `model` has parameters, width,
        heads, depth. probe_seconds: what fitting the head to frozen features took, 0 where that was not done.
        history: the columns of metrics.csv, (epochs,) each; NaN where a field is empty. images,
        probabilities: the ImageSet that it was evaluated on, and float (images, classes).
    """

    folder: Path
    settings: dict
    model: dict
    probe_seconds: float
    history: dict
    images: ImageSet
    probabilities: np.ndarray

    def __post_init__(self):
        history = self.history
        self.predicted = self.probabilities.argmax(1)  # (images,), the index of a class
        self.confidence = self.probabilities.max(1)
        self.correct = self.predicted == np.array(self.images.targets)
        self.held_out = bool(np.isfinite(history["holdout_accuracy"]).all())
        # of each epoch, (epochs,): accuracy held out, or in training where nothing was; passes up to its end
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

        `gap` is the last epoch's training accuracy, measured during the epoch and augmented, minus the
        accuracy on val; `held_out_accuracy` the best epoch's, whose weights are in best.pt.
        """
        history, accuracy = self.history, self.correct.mean()
        seconds = history["seconds"]
        images = (history["images_per_second"] * seconds).sum()
        return {"accuracy": accuracy,
                "ece": expected_calibration_error(self.confidence, self.correct),
                "gap": history["train_accuracy"][-1] - accuracy,
                "held_out_accuracy": history["holdout_accuracy"].max(),
                "epochs_to_95": self.time_to(0.95 * self.learning_curve[-1], "epochs"),
                "passes": history["passes"].sum(),
                "images_per_second": images / seconds.sum() if seconds.sum() else np.nan,
                "minutes": (self.probe_seconds + seconds.sum()) / 60,
                "peak_memory_mib": history["peak_memory_mib"].max()}


@dataclass(eq=False)
class Setting:
    """Runs that differ in their seeds alone.

    `slug` is its name in those of files, `image_set` the name of what the runs were evaluated on.
    """

    name: str
    slug: str
    image_set: str
    runs: list

    def __post_init__(self):
        first = self.runs[0]
        self.settings, self.model = first.settings, first.model
        self.images, self.held_out = first.images, first.held_out
        self.correct = np.stack([run.correct for run in self.runs])  # bool (runs, images)

    def values(self, quantity):
        """One of the runs' `quantities`, float (runs,)."""
        return np.array([run.quantities[quantity] for run in self.runs])

    def mean(self, quantity):
        return self.values(quantity).mean()

    def range(self, quantity):
        values = self.values(quantity)
        return values.min(), values.max()

    def key(self, without=()):
        """What is equal for settings that are the same but for those named in `without`."""
        return _key(self.settings, without)


def _key(settings, without=()):
    # a flag that an older version did not have counts as one that was not given
    return json.dumps({name: value for name, value in settings.items() if value is not None and value is not False
                       and name not in BETWEEN_SEEDS and name not in without}, sort_keys=True)


def _group(runs):
    """The settings of runs, named, in the order of their first runs."""
    groups = group_by(runs, lambda run: _key(run.settings)).values()
    for one, other in (pair for group in groups for pair in combinations(group, 2)):
        both, seed = f"{one.folder} and {other.folder} are runs of one setting", one.settings.get("seed")
        if seed == other.settings.get("seed"):
            raise BadInput(f"{both} with the same seed, {seed}: leave one out")
        if one.images != other.images:
            raise BadInput(f"{both}, evaluated on different images: evaluate both on the same ones")
    settings = [group[0].settings for group in groups]
    names = distinct_names([base_name(values) for values in settings], settings)
    image_sets = image_set_names(run.images for run in runs)
    return [Setting(name, slug, image_sets[group[0].images], group)
            for name, slug, group in zip(names, slugs(names), groups)]


# Reading ---------------------------------------------------------------------------------------------------


class LeftOut(Exception):
    """Why a run folder is left out, and what to do about it: what follows its name in a line."""


def _read_run(folder):
    settings, content = _read_config(folder)
    metrics = folder / "metrics.csv"
    history = _read_metrics(metrics) if metrics.exists() else {"epoch": ()}
    epochs = len(history["epoch"])
    if epochs < settings["epochs"]:
        command = _resume_command(content.get("command"), settings, folder)
        raise LeftOut(f"is not finished ({epochs} of {settings['epochs']} epochs): {command}")
    if not (folder / "best.pt").is_file():
        raise LeftOut("has no best.pt to check its evaluation against: put it back, or train again")
    try:
        images, probabilities = _read_evaluation(folder)
    except LeftOut as reason:
        data = "data/demo" if settings.get("data") == "demo" else settings.get("data", "DATA")
        command = ["python", "p1_eval.py", f"{Path(data) / 'val'}", "--checkpoint", f"{folder / 'best.pt'}"]
        raise LeftOut(f"{reason}: {shlex.join(command)}") from None
    model, probe = content.get("model") or {}, content.get("probe") or {}
    return EvaluatedRun(folder, settings, model, probe.get("seconds", 0.0), history, images, probabilities)


def _read_config(folder):
    """(settings under today's names, all of config.json)"""
    config = folder / "config.json"
    if not config.is_file():
        problem = "is not a run folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder} {problem}: name output folders of p1_train.py")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        settings = content["settings"]
        settings["epochs"] = int(settings["epochs"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{config} is damaged: leave {folder} out or train it again") from error
    if "arch" not in settings:
        raise BadInput(f"{folder} is no run of p1_train.py: leave it out")
    return current_settings(settings), content


def _read_metrics(path):
    """The columns of metrics.csv that are used here, float (epochs,) each."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS}
    except (KeyError, ValueError, TypeError) as error:
        problem = f"has no column {error}" if isinstance(error, KeyError) else "is damaged"
        raise BadInput(f"{path} {problem}: leave {path.parent} out or train it again") from error


def _resume_command(command, settings, folder):
    command = shlex.split(command or f"p1_train.py --output {shlex.quote(str(folder))}")
    ranks = settings.get("processes") or 1
    launcher = ["python"] if ranks == 1 else ["torchrun", "--nproc-per-node", str(ranks)]
    return shlex.join([*launcher, *(part for part in command if part != "--resume"), "--resume"])


def _read_evaluation(folder):
    """(ImageSet, probabilities) of the labelled images, from the eval.json and eval.npz of one evaluation."""
    if not ((folder / "eval.json").is_file() and (folder / "eval.npz").is_file()):
        raise LeftOut("was not evaluated")
    try:
        scores = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        checkpoint, flipped = scores["checkpoint_sha256"], scores.get("flip")  # flip: of an older version
        counts = scores["images"], scores["labelled"], scores["correct"]
        with np.load(folder / "eval.npz", allow_pickle=False) as arrays:
            targets, probabilities = arrays["targets"], arrays["probabilities"].astype(np.float64)
            names, labels, class_names = (arrays[key] for key in ("names", "labels", "class_names"))
            source = Path(str(arrays["folder"]))
        if probabilities.shape != (len(names), len(labels)):
            raise ValueError("not a probability for each class")
        labelled = targets >= 0
        columns = names[labelled], targets[labelled], labels, class_names
        images = ImageSet(*(tuple(column.tolist()) for column in columns), source)
        correct = int((probabilities.argmax(1) == targets).sum())
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        raise LeftOut("has a damaged evaluation") from None
    for problem, holds in (
            ("was evaluated with an older best.pt", checkpoint != sha256(folder / "best.pt")),
            ("was evaluated with --flip, which is no more", flipped),
            ("has an eval.json and an eval.npz of different evaluations",
             counts != (len(targets), len(images.names), correct)),
            ("was evaluated on images without labels", not images.names)):
        if holds:
            raise LeftOut(problem)
    return images, probabilities[labelled]


# What p1_report.py and report_page.py both draw ------------------------------------------------------------


def settings_curves(settings):
    """The arguments of plots.curves.draw_settings_curves: curves, and what their accuracy is."""
    labels = {True: "held-out accuracy", False: "training accuracy"}
    mixed = len({setting.held_out for setting in settings}) > 1
    curves = [{"name": setting.name + f" ({labels[setting.held_out]})" * mixed,
               "epochs": setting.runs[0].history["epoch"],
               "passes": np.mean([run.cumulative_passes for run in setting.runs], 0),
               "loss": np.stack([run.history["train_loss"] for run in setting.runs]),
               "accuracy": np.stack([run.learning_curve for run in setting.runs])} for setting in settings]
    return curves, "accuracy" if mixed else labels[settings[0].held_out]


def reliability_curves(settings):
    """What plots.calibration.draw_reliability takes."""
    return [(f"{setting.name}\nECE {setting.mean('ece'):.3f}",
             *reliability(np.concatenate([run.confidence for run in setting.runs]), setting.correct.ravel()))
            for setting in settings]
