"""What a training run leaves in its output folder, written whole or not at all.

    last.pt  best.pt     checkpoints (models.vit, models.catr); last.pt also holds what a resume needs, under `resume`
    previous.pt          the last.pt before that
    metrics.csv          a row an epoch
    config.json          every setting, facts about the model, the versions, the git commit, the command
    curves.png           loss and accuracy over the epochs
"""

import contextlib
import csv
import io
import json
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from common.cli import is_first_rank_to, note
from common.errors import BadImage, BadInput, TrainingStopped
from common.files import read_tensors, remove_leftovers, write_text, written_whole
from engine import distributed
from engine.flags import HARMLESS

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
METRICS, CONFIG, CURVES = "metrics.csv", "config.json", "curves.png"


def write_metrics(history, folder):
    """Write `metrics.csv` from `history`, one dict an epoch; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / METRICS, text.getvalue())


def describe_run(settings, about):
    """The text of `config.json`: the settings, with the versions, the commit and the command behind them, and `about`."""
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], text=True,
                                capture_output=True, cwd=Path(__file__).parent, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    config = {
        "settings": settings,
        **about,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": commit or None,
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in (
                         "torch", "torchvision", "timm", "tokenizers", "numpy", "pillow", "scikit-learn")}},
    }
    return json.dumps(config, indent=2) + "\n"


def find_run(folder, resume):
    """The saved state in an output folder to resume from; None to start anew.

    It is `last.pt`, or `previous.pt` where a kill between two renames left that alone. Raises BadInput for a folder that
    holds a run already when `resume` is not set, and for a damaged file, with the older one that can be used.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--output {folder} is a file: name a folder")
    last, previous, best = (folder / name for name in (LAST, PREVIOUS, BEST))
    if not resume:
        if last.exists() or previous.exists() or best.exists():
            raise BadInput(f"--output {folder} holds a run already: pass --resume to go on, or name another folder")
        return None
    if not last.exists():
        return _read_state(previous) if previous.exists() else None
    try:
        return _read_state(last)
    except BadInput as error:
        try:
            resume = _read_state(previous)["resume"]
            older = (f"remove it, and --resume goes on from {previous}, which is whole "
                     f"({after(resume['epoch'], resume['step'])})")
        except BadInput:
            older = f"start a new run, from the weights in {best} if you like" if best.exists() else "start a new run"
        raise BadInput(f"{last} is damaged or not a checkpoint that training can go on from: {older}") from error


def _read_state(path):
    saved = read_tensors(path)
    if not isinstance(saved, dict) or "resume" not in saved:
        raise BadInput(f"{path} is not a checkpoint that training can go on from: remove it or name another folder")
    return saved


def clean(folder):
    """Remove the half-written files that a run which was killed left in its output folder."""
    for name in (LAST, BEST, METRICS, CONFIG, CURVES):
        remove_leftovers(Path(folder) / name)


def mend(folder, saved):
    """Bring best.pt and metrics.csv in line with the saved state, which a kill may have left ahead of them.

    Where best.pt is of another epoch than the state says, and the state itself no longer holds that epoch's weights,
    the state's `best` is set back, so that the best epoch to come takes its place.
    """
    folder, resume = Path(folder), saved["resume"]
    if resume["history"]:
        write_metrics(resume["history"], folder)
    if resume["best_epoch"] == resume["epoch"] > 0 == resume["step"]:
        average = resume["average"] or {}
        weights = {key.removeprefix("module."): value for key, value in average.items() if key.startswith("module.")}
        save_checkpoint({**{key: value for key, value in saved.items() if key != "resume"}, "epoch": resume["epoch"],
                         "state_dict": weights or saved["state_dict"]}, folder / BEST)
    elif resume["best_epoch"]:
        try:
            epoch = read_tensors(folder / BEST).get("epoch")
        except BadInput:
            epoch = None
        if epoch != resume["best_epoch"]:
            note(f"{folder / BEST} is not that of epoch {resume['best_epoch']}, the best so far: an epoch to come replaces it")
            resume["best"] = -1.0


def check_settings(settings, saved):
    """Refuse to resume with settings other than the saved ones, by name; more epochs are fine. Raises BadInput."""
    for name, value in settings.items():
        before = saved.get(name)
        more_epochs = name == "epochs" and value >= before
        if name not in HARMLESS and value != before and not more_epochs:
            flag = "the number of processes" if name == "processes" else f"--{name.replace('_', '-')}"
            raise BadInput(f"--resume: {flag} is {value} now and was {before} before: pass the same, or start a new run")


def save_checkpoint(content, path, previous=None):
    """Save a checkpoint; the one before it survives until this one is whole, and then as `previous` if that is given.

    Raises BadInput where it cannot be written, as on a full disk.
    """
    try:
        with written_whole(path, previous) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)  # to a file, not a path: then a full disk is an OSError
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch ends its archive all the same
        if not isinstance(reason, OSError):
            raise
        last = path.with_name(LAST)
        before = f"; {last} is whole: mend that, and --resume goes on from there" if last.exists() else ""
        raise BadInput(f"{path} cannot be saved: {reason.strerror or reason}{before}") from error


class Saver:
    """Saves the state of a run in its output folder, and knows where it last did.

    All processes of a run have one and call it alike; the first process alone writes.

    Args:
        folder: the output folder; made at the first save.
        state: an `engine.state.TrainingState`.
        fields: what checkpoints hold besides the state: all that evaluation needs to build the model again.
        every: a `common.cli.SaveEvery`, when `due` says yes; None for never.
    """

    def __init__(self, folder, state, fields, every=None):
        self.folder, self.state, self.fields, self.every = Path(folder), state, fields, every
        self.config = describe_run(state.settings, state.about)
        self._saved()

    def _saved(self):
        self.position, self.time, self.steps = self._position(), time.monotonic(), 0

    def _position(self):
        return self.state.epoch, self.state.step

    def due(self):
        """To be asked once after each step: whether `every` wants a save now."""
        self.steps += 1
        return self.every is not None and self.every.due(self.steps, time.monotonic() - self.time)

    def save(self):
        """Save the state as `last.pt`, unless it is there already. Raises TrainingStopped as `stop_if_spoilt` does."""
        if self.position == self._position():
            return
        self.stop_if_spoilt()
        if distributed.rank() == 0:
            self._write()
        self._saved()

    def _write(self):
        write_text(self.folder / CONFIG, self.config)
        save_checkpoint({**self.fields, **self.state.state_dict()}, self.folder / LAST, self.folder / PREVIOUS)

    def save_best(self):
        """Save the weights that evaluation uses as `best.pt`, after `save`: `mend` does it where a kill came between."""
        if distributed.rank() == 0:
            save_checkpoint({**self.fields, **self.state.best_weights()}, self.folder / BEST)

    def save_metrics(self):
        """Save the history as `metrics.csv`."""
        if distributed.rank() == 0:
            write_metrics(self.state.history, self.folder)

    def stop_if_spoilt(self):
        """Raise TrainingStopped if the weights are not finite: they must not replace good ones."""
        if not self.state.is_finite():
            raise TrainingStopped(f"the weights are not finite {after(*self._position())}: {self.kept()}; "
                                  "start a new run with a smaller --lr")

    def kept(self):
        """Words for where the last good state is."""
        if self.position == (0, 0):
            return "no good state was saved before it"
        return f"the last good state, {after(*self.position)}, is in {self._newest()}"

    def _newest(self):
        last = self.folder / LAST
        return last if last.exists() else self.folder / PREVIOUS  # as `find_run` does

    @contextlib.contextmanager
    def rescuing(self):
        """Save before the block ends because an image could not be read, or because another process has ended.

        For the latter, which one of the processes that are left does, it raises ProcessLost. Where nothing was saved
        before, an image that cannot be read leaves no run behind, so that a new one may go without it.
        """
        try:
            with distributed.detect_lost_ranks():
                yield
        except BadImage:
            if self.position != (0, 0):
                self.save()
            raise
        except distributed.RankLost as error:
            epoch, step = self._position()
            if (epoch, step) != (0, 0) and is_first_rank_to(f"save epoch {epoch}, step {step}"):
                self.stop_if_spoilt()
                self._write()
            kept = f"--resume goes on {after(epoch, step)}" if epoch or step else "nothing was saved yet"
            raise distributed.RankLost(f"{error}: {kept}") from error


def after(epoch, step):
    """Words for a state with `epoch` epochs done and `step` steps of the next one."""
    return f"after step {step} of epoch {epoch + 1}" if step else f"after epoch {epoch}"
