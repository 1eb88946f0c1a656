"""The photos of a training run: those that it began with, less those that it goes on without.

The split and the order depend on how many photos there are. So one that becomes bad later keeps its place,
which stays empty: nothing else moves into it.
"""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.cli import note
from common.errors import BadInput
from datasets.decode import bad_files, shortened, undecodable
from datasets.images import without_bad
from engine import distributed

REMEDY = "fix them, or pass --resume --skip-bad to go on without"


@dataclass
class Photos:
    """`sizes`: {name: bytes} of the photos that a run began with; `left_out`: {name: reason} of those among
    them that it goes on without, and of those that it began without."""

    sizes: dict
    left_out: dict


def first_photos(root, names, bad, decode, skip_bad):
    """The Photos of a new run out of `names`. Collective.

    `bad`, {name: reason}, are known to be; `decode` tries the others. BadInput, with a list, for bad ones
    without `skip_bad`.
    """
    if decode:
        bad = {**bad, **_undecodable(root, [name for name in names if name not in bad])}
    return Photos({name: _size(root, name) for name in without_bad(root, names, bad, skip_bad)}, bad)


def photos_again(saved, root, names, skip_bad):
    """The Photos of a run that goes on, from those `saved` and the `names` that are there now. Collective.

    Photos of another size and missing ones are tried, with `skip_bad` all. BadInput for bad ones without it,
    and for other photos than those that the run began with.
    """
    sizes, left_out = saved["sizes"], saved["left_out"]
    present = [name for name in sizes if name not in left_out]
    changed = [name for name in present if _size(root, name) != sizes[name]]
    bad = _undecodable(root, present if skip_bad else changed)
    if others := [*set(names) - sizes.keys() - left_out.keys(), *set(changed) - bad.keys()]:
        raise BadInput(f"--resume: {root} holds other images than when the run began, such as {min(others)}: "
                       "start a new run")
    if bad and not skip_bad:
        raise bad_files(root, bad, len(sizes), REMEDY)
    if len(bad) == len(present):
        raise BadInput(f"{root} holds no image that can be used")
    if bad:
        note(f"left out {len(bad)} bad file{'s' * (len(bad) > 1)}: {', '.join(shortened(bad))}")
    return Photos(sizes, {**left_out, **bad})


def _undecodable(root, names):
    """{name: reason} of the photos that cannot be decoded; each rank tries its shard. Collective."""
    local_names = distributed.shard(names)
    reasons = undecodable(root, local_names, progress=lambda tried: tqdm(
        tried, "checking photos", len(local_names), unit=" photos", leave=False,
        disable=None if distributed.rank() == 0 else True))
    with distributed.detect_lost_ranks():
        return {name: reason for part in distributed.all_gather(reasons) for name, reason in part.items()}


def _size(root, name):
    path = Path(root) / name
    return path.stat().st_size if path.is_file() else None
