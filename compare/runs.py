"""Run folders, read into runs, and the runs grouped into settings of several seeds."""

import csv
import json
import shlex
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import sha256
from compare.statistics import expected_calibration_error
from engine.flags import HARMLESS, optimizer_name

# What may differ between the runs of one setting.
BETWEEN_SEEDS = HARMLESS | {"seed", "deterministic"}
COLUMNS = ("epoch", "train_loss", "train_accuracy", "holdout_accuracy", "images_per_second", "seconds", "passes",
           "peak_memory_mib")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The labelled images of an evaluation: `targets[i]` is the index in `labels` of the image `names[i]`.

    `flip` says whether their mirror images were averaged in. `folder` is where they were. It does not count when two sets
    are compared: a data set may have been moved.
    """

    names: tuple
    targets: tuple
    labels: tuple
    class_names: tuple
    flip: bool
    folder: Path

    def _compared(self):
        return self.names, self.targets, self.labels, self.flip

    def __eq__(self, other):
        return self._compared() == other._compared()

    def __hash__(self):
        return hash(self._compared())


@dataclass(eq=False)
class Run:
    """A finished and evaluated run.

    Attributes:
        folder: its run folder.
        settings, model: what config.json says of them; `model` has parameters, width, heads and depth.
        probe_seconds: what fitting the head to frozen features took, 0 where that was not done.
        history: the columns of metrics.csv, (epochs,) each; NaN where a field is empty.
        images: the ImageSet that it was evaluated on.
        probabilities: float (images, classes).
    """

    folder: Path
    settings: dict
    model: dict
    probe_seconds: float
    history: dict
    images: ImageSet
    probabilities: np.ndarray

    @cached_property
    def predicted(self):
        """The index of the most probable class of each image, (images,)."""
        return self.probabilities.argmax(1)

    @cached_property
    def correct(self):
        """Whether each image was predicted right, bool (images,)."""
        return self.predicted == np.array(self.images.targets)

    @cached_property
    def confidence(self):
        """The probability of the predicted class of each image, (images,)."""
        return self.probabilities.max(1)

    @property
    def accuracy(self):
        return self.correct.mean()

    @cached_property
    def ece(self):
        return expected_calibration_error(self.confidence, self.correct)

    @property
    def gap(self):
        """The last epoch's training accuracy, measured during the epoch and augmented, minus the accuracy on val."""
        return self.history["train_accuracy"][-1] - self.accuracy

    @property
    def held_out(self):
        """Whether a part of the training images was held out, so that there is a held-out accuracy."""
        return bool(np.isfinite(self.history["holdout_accuracy"]).all())

    @property
    def watched(self):
        """The accuracy of each epoch, (epochs,): of the held-out part, or in training where nothing was held out."""
        return self.history["holdout_accuracy" if self.held_out else "train_accuracy"]

    @property
    def epochs_to_95(self):
        return self.epochs_to(0.95 * self.watched[-1])

    def epochs_to(self, accuracy):
        """The first epoch whose watched accuracy is at least this; infinite if none is."""
        reached = np.flatnonzero(self.watched >= accuracy)
        return self.history["epoch"][reached[0]] if len(reached) else np.inf

    def passes_to(self, accuracy):
        """How many forward-backward passes the run had taken at the end of that epoch."""
        reached = np.flatnonzero(self.watched >= accuracy)
        return self.history["passes"].cumsum()[reached[0]] if len(reached) else np.inf

    @property
    def held_out_accuracy(self):
        """The best epoch's, whose weights are in best.pt."""
        return self.history["holdout_accuracy"].max()

    @property
    def passes(self):
        return self.history["passes"].sum()

    @property
    def images_per_second(self):
        seconds = self.history["seconds"]
        return (self.history["images_per_second"] * seconds).sum() / seconds.sum() if seconds.sum() else np.nan

    @property
    def minutes(self):
        return (self.probe_seconds + self.history["seconds"].sum()) / 60

    @property
    def peak_memory_mib(self):
        return self.history["peak_memory_mib"].max()


@dataclass(eq=False)
class Setting:
    """Runs that differ in their seeds alone. `image_set` is the name of what they were evaluated on."""

    name: str
    runs: list
    image_set: str = ""

    @property
    def in_prose(self):
        """The name for a sentence, where its commas would mislead: `tiny-4 (lr 1e-04)`."""
        name, comma, values = self.name.partition(", ")
        return f"{name} ({values})" if comma else name

    @property
    def settings(self):
        return self.runs[0].settings

    @property
    def model(self):
        return self.runs[0].model

    @property
    def images(self):
        return self.runs[0].images

    @property
    def held_out(self):
        return self.runs[0].held_out

    @property
    def correct(self):
        """bool (runs, images)"""
        return np.stack([run.correct for run in self.runs])

    def values(self, quantity):
        """An attribute of each run, float (runs,)."""
        return np.array([getattr(run, quantity) for run in self.runs], dtype=float)

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
    return json.dumps({name: value for name, value in settings.items()
                       if name not in BETWEEN_SEEDS and name not in without and value is not None}, sort_keys=True)


# Reading -----------------------------------------------------------------------------------------------------------


def read_runs(folders):
    """The runs in folders, and a line for each that is left out, which says what to do.

    Left out are runs that are not finished, or not evaluated with the best.pt that is there now. Raises BadInput for a
    folder that is no run of p1_train.py, for damaged files, and if nothing is left.
    """
    runs, left_out = [], []
    for folder in map(Path, folders):
        found = _read_run(folder)
        (runs if isinstance(found, Run) else left_out).append(found)
    if not runs:
        raise BadInput("none of the runs can be used: do what stands below", left_out)
    return runs, left_out


def _read_run(folder):
    """A Run, or a line that says why it is left out."""
    config = folder / "config.json"
    if not config.is_file():
        problem = "is not a run folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder} {problem}: name output folders of p1_train.py")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        settings, command = content["settings"], content.get("command")
        epochs = int(settings["epochs"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{config} is damaged: leave {folder} out or train it again") from error
    if "arch" not in settings:
        raise BadInput(f"{folder} is no run of p1_train.py: leave it out")

    history = _read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else {"epoch": ()}
    if len(history["epoch"]) < epochs:
        return (f"{folder} is not finished ({len(history['epoch'])} of {epochs} epochs): "
                f"{_to_resume(command, settings, folder)}")
    again = _to_evaluate(settings, folder)
    if not (folder / "best.pt").is_file():
        return f"{folder} has no best.pt that its evaluation could be checked against: put it back, or train again"
    if not ((folder / "eval.json").is_file() and (folder / "eval.npz").is_file()):
        return f"{folder} was not evaluated: {again}"
    try:
        scores = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        evaluated = scores["checkpoint_sha256"]
        with np.load(folder / "eval.npz", allow_pickle=False) as arrays:
            targets = arrays["targets"]
            labelled = targets >= 0
            images = ImageSet(tuple(arrays["names"][labelled].tolist()), tuple(targets[labelled].tolist()),
                              tuple(arrays["labels"].tolist()), tuple(arrays["class_names"].tolist()),
                              bool(scores["flip"]), Path(str(arrays["folder"])))
            probabilities = arrays["probabilities"][labelled].astype(np.float64)
            if probabilities.shape != (len(images.names), len(images.labels)):
                raise ValueError("not a probability for each class")
        run = Run(folder, settings, content.get("model") or {}, (content.get("probe") or {}).get("seconds", 0.0), history,
                  images, probabilities)
        counts = len(targets), len(images.names), int(run.correct.sum())
        fits = counts == (scores["images"], scores["labelled"], scores["correct"])
    except (ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        return f"{folder} has a damaged evaluation: {again}"
    if evaluated != sha256(folder / "best.pt"):
        return f"{folder} was evaluated with an older best.pt: {again}"
    if not fits:
        return f"{folder} has an eval.json and an eval.npz of different evaluations: {again}"
    if not images.names:
        return f"{folder} was evaluated on images without labels: {again}"
    return run


def _read_metrics(path):
    """The columns of metrics.csv that are used here, float (epochs,) each."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS}
    except (KeyError, ValueError, TypeError) as error:
        what = f"has no column {error}" if isinstance(error, KeyError) else "is damaged"
        raise BadInput(f"{path} {what}: leave {path.parent} out or train it again") from error


def _to_resume(command, settings, folder):
    command = shlex.split(command or f"p1_train.py --output {shlex.quote(str(folder))}")
    processes = settings.get("processes") or 1
    start = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return shlex.join([*start, *(part for part in command if part != "--resume"), "--resume"])


def _to_evaluate(settings, folder):
    data = "data/demo" if settings.get("data") == "demo" else str(settings.get("data", "DATA"))
    return shlex.join(["python", "p1_eval.py", str(Path(data) / "val"), "--checkpoint", str(folder / "best.pt")])


# Grouping ----------------------------------------------------------------------------------------------------------


def group_runs(runs):
    """The settings of runs, named, in the order of their first runs.

    Raises BadInput where two runs of one setting have the same seed, or were evaluated on different images.
    """
    groups = {}
    for run in runs:
        groups.setdefault(_key(run.settings), []).append(run)
    for group in groups.values():
        first = {}
        for run in group:
            seed = run.settings.get("seed")
            if seed in first:
                raise BadInput(f"{first[seed].folder} and {run.folder} are runs of one setting with the same seed, {seed}: "
                               "leave one out")
            first[seed] = run
            if run.images != group[0].images:
                raise BadInput(f"{group[0].folder} and {run.folder} are runs of one setting, evaluated on different "
                               "images: evaluate both on the same with p1_eval.py")
    groups = list(groups.values())
    names = distinct_names([base_name(group[0].settings) for group in groups], [group[0].settings for group in groups])
    sets = _image_set_names(runs)
    return [Setting(name, group, sets[group[0].images]) for name, group in zip(names, groups)]


def base_name(settings):
    """The stem of the recipe, or a description of the setting: `vit_tiny_patch16_224, pretrained, SAM(adam)`."""
    return Path(settings["recipe"]).stem if settings.get("recipe") else describe(settings)


def describe(settings):
    """What is trained, from what, and how."""
    start = "from scratch" if settings.get("scratch") else "pretrained"
    return f"{settings['arch']}, {start}, {optimizer_name(settings)}"


def distinct_names(names, settings, ignored=()):
    """The names, with the values of the settings in which those of the same name differ, such as `tiny-4, lr 1e-04`."""
    found = []
    for name, own in zip(names, settings):
        namesakes = [other for its_name, other in zip(names, settings) if its_name == name]
        differing = [key for key in own if key not in BETWEEN_SEEDS and key not in ignored
                     and any(other.get(key) != own[key] for other in namesakes)]
        # a setting that only the others have
        differing += sorted({key for other in namesakes for key in other if other[key] is not None}
                            - set(own) - BETWEEN_SEEDS - set(ignored))
        found.append(", ".join([name, *(f"{key.replace('_', ' ')} {in_words(own.get(key))}" for key in differing)]))
    return found


def in_words(value):
    """A setting's value as text; different values have different texts."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return np.format_float_scientific(value, trim="-", exp_digits=2) if 0 < abs(value) < 0.01 else repr(value)
    return "none" if value is None else str(value)


def _image_set_names(runs):
    """A short name for each ImageSet: the last two parts of its folder's path, numbered where they are not enough."""
    names = {}
    for run in runs:
        if run.images not in names:
            short = "/".join(run.images.folder.parts[-2:]).lstrip("/") + ", flipped too" * run.images.flip
            same = sum(name.split(" (")[0] == short for name in names.values())
            names[run.images] = f"{short} ({same + 1})" if same else short
    return names
