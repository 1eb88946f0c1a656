"""What a training run leaves in its output folder, written whole or not at all.

    last.pt  best.pt     checkpoints (models.vit); last.pt also holds what a resume needs, under `resume`
    metrics.csv          a row an epoch
    config.json          every setting, the versions, the git commit, the command
    curves.png           loss and accuracy over the epochs
"""

import csv
import io
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from common.errors import BadInput
from common.files import read_tensors, write_text, written_whole

LAST, BEST, METRICS, CONFIG, CURVES = "last.pt", "best.pt", "metrics.csv", "config.json", "curves.png"
HARMLESS = {"resume", "output", "workers", "device", "save_every", "skip_bad"}


def save_checkpoint(content, path):
    """Save a checkpoint; the one before it survives until this one is whole."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)  # to a file, not a path: then a full disk is an OSError


def write_metrics(history, folder):
    """Write `metrics.csv` from `history`, one dict an epoch; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / METRICS, text.getvalue())


def describe_run(settings):
    """The text of `config.json`: the settings, with the versions, the commit and the command behind them."""
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], text=True,
                                capture_output=True, cwd=Path(__file__).parent, check=False).stdout.strip()
    except OSError:  # no git here
        commit = ""
    config = {
        "settings": settings,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": commit or None,
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}},
    }
    return json.dumps(config, indent=2) + "\n"


def find_run(folder, resume):
    """The content of `last.pt` in an output folder to resume from; None to start anew.

    Raises BadInput for a folder that holds a run already when `resume` is not set.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--output {folder} is a file: name a folder")
    last = folder / LAST
    if not resume:
        if last.exists() or (folder / BEST).exists():
            raise BadInput(f"--output {folder} holds a run already: pass --resume to go on, or name another folder")
        return None
    if not last.exists():
        return None
    saved = read_tensors(last)
    if not isinstance(saved, dict) or "resume" not in saved:
        raise BadInput(f"{last} is not a checkpoint that training can go on from: remove it or name another folder")
    return saved


def check_settings(settings, saved):
    """Refuse to resume with settings other than the saved ones, by name; more epochs are fine. Raises BadInput."""
    for name, value in settings.items():
        before = saved.get(name)
        more_epochs = name == "epochs" and value >= before
        if name not in HARMLESS and value != before and not more_epochs:
            flag = "the number of processes" if name == "processes" else f"--{name.replace('_', '-')}"
            raise BadInput(f"--resume: {flag} is {value} now and was {before} before: pass the same, or start a new run")
