"""What a training run leaves in its output folder, written whole, and how a run goes on from it.

    last.pt  best.pt     checkpoints (models.checkpoint, models.catr); last.pt also holds `resume`
    previous.pt          the last.pt before that
    metrics.csv          a row an epoch
    config.json          every setting, facts about the model, versions, git commit, command, GPU
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

from common.cli import note
from common.errors import BadImage, BadInput, TrainingStopped
from common.files import read_tensors, remove_leftovers, write_text, written_whole
from common.machine import gpu_failure, is_first_rank_to
from engine import distributed
from engine.device import describe_gpu, to_cpu
from engine.flags import HARMLESS, ORIGINS, current_settings
from engine.loader import LostWorker

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
METRICS, CONFIG, CURVES = "metrics.csv", "config.json", "curves.png"
PACKAGES = ("torch", "torchvision", "timm", "tokenizers", "numpy", "pillow")


def write_metrics(history, folder):
    """Write `metrics.csv` from `history`, one dict an epoch; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / METRICS, text.getvalue())


def describe_run(settings, about, device):
    """The text of `config.json`: settings, versions, commit, command and GPU behind them, and `about`."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], text=True,
            capture_output=True, cwd=Path(__file__).parent, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    config = {
        "settings": settings,
        **about,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": commit or None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        **describe_gpu(device),
    }
    return json.dumps(config, indent=2) + "\n"


# Going on ----------------------------------------------------------------------------------------------


def find_run(folder, resume):
    """The saved state in an output folder to resume from; None to start anew.

    It is `last.pt`, or `previous.pt` where a kill between two renames left that alone. Raises BadInput for a
    folder that holds a run when `resume` is not set, and for a damaged file, with the older one to use.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--output {folder} is a file: name a folder")
    last, previous, best = (folder / name for name in (LAST, PREVIOUS, BEST))
    if not resume:
        if any(path.exists() for path in (last, previous, best)):
            raise BadInput(f"--output {folder} holds a run already: pass --resume to go on, or name another "
                           "folder")
        return None
    if not last.exists():
        return _read_state(previous) if previous.exists() else None
    try:
        return _read_state(last)
    except BadInput as error:
        try:
            resume = _read_state(previous)["resume"]
            remedy = (f"remove it, and --resume goes on from {previous}, which is whole "
                      f"({position_in_words(resume['epoch'], resume['step'])})")
        except BadInput:
            remedy = "start a new run" + f", from the weights in {best} if you like" * best.exists()
        raise BadInput(f"{last} is damaged or not a checkpoint that training can go on from: {remedy}") \
            from error


def _read_state(path):
    saved = read_tensors(path)
    if not isinstance(saved, dict) or "resume" not in saved:
        raise BadInput(f"{path} is not a checkpoint that training can go on from: remove it or name another "
                       "folder")
    return saved


def check_settings(settings, saved, default):
    """Raise BadInput, by name, for settings other than the saved ones; more epochs are fine.

    A setting that an older version did not save counts as `default(name)`; one that is gone is refused.
    """
    saved = current_settings(saved)
    for name in {**settings, **saved}:
        if name in HARMLESS | ORIGINS:
            continue
        before = saved.get(name, default(name))
        flag = "the number of processes" if name == "processes" else f"--{name.replace('_', '-')}"
        if name not in settings:
            raise BadInput(f"--resume: {flag} was {before} before, which this version does not have: start a "
                           "new run")
        now = settings[name]
        if now != before and not (name == "epochs" and now >= before):
            raise BadInput(f"--resume: {flag} is {now} now and was {before} before: pass the same, or start "
                           "a new run")


def stamp(folder):
    """What tells whether another run has saved in an output folder since."""
    paths = [Path(folder) / name for name in (LAST, PREVIOUS, BEST)]
    return [(path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None for path in paths]


def remove_half_written(folder):
    """Remove the half-written files that a run which was killed left in its output folder."""
    for name in (LAST, BEST, METRICS, CONFIG, CURVES):
        remove_leftovers(Path(folder) / name)


def complete_outputs(folder, saved):
    """Bring best.pt and metrics.csv in line with the saved state, which a kill may have left ahead of them.

    Where best.pt is of another epoch than the state says, and the state itself no longer holds that epoch's
    weights, the state's `best` is set back, so that the best epoch to come takes its place.
    """
    folder, resume = Path(folder), saved["resume"]
    if resume["history"]:
        write_metrics(resume["history"], folder)
    if resume["best_epoch"] == resume["epoch"] > 0 == resume["step"]:
        average = {key.removeprefix("module."): value for key, value in (resume["average"] or {}).items()
                   if key.startswith("module.")}
        content = {key: value for key, value in saved.items() if key != "resume"}
        save_checkpoint({**content, "epoch": resume["epoch"], "state_dict": average or saved["state_dict"]},
                        folder / BEST)
    elif resume["best_epoch"]:
        try:
            epoch = read_tensors(folder / BEST).get("epoch")
        except BadInput:
            epoch = None
        if epoch != resume["best_epoch"]:
            note(f"{folder / BEST} is not that of epoch {resume['best_epoch']}, the best so far: an epoch to "
                 "come replaces it")
            resume["best"] = -1.0


# Saving ------------------------------------------------------------------------------------------------


def save_checkpoint(content, path, previous=None):
    """Save a checkpoint; the one before it survives until this one is whole, and then as `previous`.

    Raises BadInput where it cannot be written, as on a full disk.
    """
    try:
        with written_whole(path, previous) as temporary, open(temporary, "wb") as file:
            # to a file, not a path: then a full disk is an OSError; from the CPU, to be read without a GPU
            torch.save(to_cpu(content), file)
    except (OSError, RuntimeError) as error:
        # torch ends its archive all the same, which raises a RuntimeError of its own
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        last = path.with_name(LAST)
        way_out = f"; {last} is whole: make room, and --resume goes on from there" if last.exists() else ""
        raise BadInput(f"{path} cannot be saved: {reason.strerror or reason}{way_out}") from error


class Saver:
    """Saves the state of a run in its output folder, and knows where it last did.

    Each rank has one and calls it alike; rank 0 alone writes.

    Args:
        folder: the output folder; made at the first save.
        state: an `engine.state.TrainingState`.
        fields: what checkpoints hold besides the state: all that evaluation needs to build the model again.
        every: a `common.cli.SaveEvery`, when `due` says yes; None for never.
        release: is called when the run ends, by `engine.loop.Loop`.
    """

    def __init__(self, folder, state, fields, every=None, release=lambda: None):
        self.folder, self.state, self.fields, self.every = Path(folder), state, fields, every
        self.release = release
        self.config = describe_run(state.settings, state.about, next(state.model.parameters()).device)
        self._mark_saved()

    def _mark_saved(self):
        self.position, self.time, self.steps = self._position(), time.monotonic(), 0

    def _position(self):
        return self.state.epoch, self.state.step

    def due(self):
        """To be asked once after each step: whether `every` wants a save now."""
        self.steps += 1
        return self.every is not None and self.every.due(self.steps, time.monotonic() - self.time)

    def save(self):
        """Save the state as `last.pt`, unless it is there already. Raises as `stop_if_nonfinite` does."""
        if self.position == self._position():
            return
        self.stop_if_nonfinite()
        if distributed.rank() == 0:
            self._write()
        self._mark_saved()

    def _write(self):
        write_text(self.folder / CONFIG, self.config)
        content = {**self.fields, **self.state.state_dict()}
        save_checkpoint(content, self.folder / LAST, self.folder / PREVIOUS)

    def save_best(self):
        """Save the weights that evaluation uses as `best.pt`, after `save`; a kill between them is made good
        by `complete_outputs`."""
        if distributed.rank() == 0:
            save_checkpoint({**self.fields, **self.state.best_weights()}, self.folder / BEST)

    def save_metrics(self):
        """Save the history as `metrics.csv`."""
        if distributed.rank() == 0:
            write_metrics(self.state.history, self.folder)

    def stop_if_nonfinite(self):
        """Raise TrainingStopped if the weights are not finite: they must not replace good ones."""
        if not self.state.is_finite():
            raise TrainingStopped(f"the weights are not finite {position_in_words(*self._position())}: "
                                  f"{self.last_good_state()}; start a new run with a smaller --lr")

    def last_good_state(self):
        """Words for where the last good state is."""
        if self.position == (0, 0):
            return "no good state was saved before it"
        last = self.folder / LAST
        newest = last if last.exists() else self.folder / PREVIOUS  # as `find_run` does
        return f"the last good state, {position_in_words(*self.position)}, is in {newest}"

    @contextlib.contextmanager
    def rescuing(self):
        """Save before the block ends because an image could not be read, or another process was lost.

        One of the ranks that are left does. A LostWorker or RankLost says from where --resume goes on. After
        a failure of the GPU nothing is saved, but what was is named.
        """
        try:
            with distributed.detect_lost_ranks():
                yield
        except (BadImage, distributed.RankLost, LostWorker) as error:
            epoch, step = position = self._position()
            # rank 0 alone knows that it has saved
            unsaved = distributed.rank() > 0 or position != self.position
            if unsaved and position != (0, 0) and is_first_rank_to(f"save epoch {epoch}, step {step}"):
                self.stop_if_nonfinite()
                self._write()
            if isinstance(error, BadImage):
                raise
            way_out = "nothing was saved yet"
            if epoch or step:
                way_out = f"--resume goes on {position_in_words(epoch, step)}"
            raise type(error)(f"{error}: {way_out}", error.details) from error
        except RuntimeError as error:
            # what the GPU holds may be half a step, or lost
            if not (message := gpu_failure(error)):
                raise
            raise BadInput(f"{message}; {self.last_good_state()}") from error


def position_in_words(epoch, step):
    """Words for a state with `epoch` epochs done and `step` steps of the next one."""
    return f"after step {step} of epoch {epoch + 1}" if step else f"after epoch {epoch}"
