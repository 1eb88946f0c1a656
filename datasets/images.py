"""Labelled image folders, the part that is held out, and the Dataset of their images.

Two layouts are read. Flat: files named `{class}_{id}.ext`, where the class is what stands before the last
`_`. Or one subfolder a class. A label stays as it is written, a number or a word.

Every file below a folder counts as an image, whatever its name; hidden files do not, and not what desktops
and network storages leave behind.
"""

import contextlib
import hashlib
import os
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from common.cli import note
from common.errors import BadInput
from common.files import nfc, refuse_missing
from datasets.decode import bad_files, load_image, shortened, undecodable, unreadable

LITTER = (".", "thumbs.db", "desktop.ini", "__macosx", "icon\r", "@eadir", "#recycle", "@recycle",
          "$recycle.bin", "system volume information", "lost+found")  # how names begin that do not count


def list_files(folder, written=()):
    """The sorted names of a folder's files, and `subfolder/name`. BadInput for none, and for deeper ones.

    The paths `written`, where this call's output goes, do not count: it may lie there from an earlier call.
    """
    folder, written = Path(folder), {os.path.realpath(path) for path in written}
    refuse_missing(folder, "a folder of images", folder=True)
    names, empty = [], []
    for entry in _visible(folder, written):
        if not os.path.isdir(entry.path):
            names.append(entry.name)
            continue
        for inner in _visible(entry.path, written):
            if os.path.isdir(inner.path):
                raise BadInput(f"{inner.path} is nested too deep: put images in {folder} or its subfolders")
            names.append(f"{entry.name}/{inner.name}")
        if not _visible(entry.path):
            empty.append(entry.name)
    if not names:
        raise BadInput(f"{folder} holds no images")
    if empty:
        note(f"{folder} has subfolders without images: {', '.join(shortened(empty))}")
    return sorted(names)


def _visible(folder, written=()):
    real = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.lower().startswith(LITTER)
                and os.path.join(real, entry.name) not in written]


def label_of(name):
    """The label that a file's name carries: its subfolder, or what stands before the last `_`; else None."""
    if "/" in name:
        return name.split("/")[0]
    label, _, identifier = (name.rpartition(".")[0] if "." in name else name).rpartition("_")
    return label if label and identifier else None


def known_label(name, known, folder=""):
    """What `known`, a dict by labels in NFC, holds of a file's label; None where the label is not in it.

    A subfolder in the file's `name` is its label; else the `folder` around it, if `known`; else what its name
    says.
    """
    if "/" not in name and nfc(folder) in known:
        return known[nfc(folder)]
    return known.get(nfc(label_of(name) or ""))


def is_number(label):
    """Whether a label is a whole number, in the digits 0 to 9."""
    return label.isascii() and label.isdigit()


def in_label_order(labels):
    """The distinct labels, sorted, by value if all are numbers. BadInput for two spellings of one number.

    Those that differ in Unicode's form alone are one.
    """
    labels = sorted({nfc(label): label for label in sorted(set(labels))}.values())
    if not all(map(is_number, labels)):
        return labels
    labels.sort(key=int)
    for one, other in zip(labels, labels[1:]):
        if int(one) == int(other):
            raise BadInput(f"the labels {one} and {other} are the same number: write it in one way")
    return labels


def class_names(labels, file):
    """The names of `labels` (in label order) from `file`, one a line; without it the labels themselves.

    Names that are the labels may have any order. As many others as labels follow label order. Of more names,
    numeric labels count from 0, as when a part of the classes has no photo. Anything else is BadInput. A note
    shows what is only assumed.
    """
    if not file.exists():
        return list(labels)
    try:
        names = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text") from error
    given, own = Counter(map(nfc, names)), Counter(map(nfc, labels))
    if given == own:
        return list(labels)
    numeric = all(map(is_number, labels))
    if not numeric and given & own:
        lines = [f"{name!r} is no label, or twice there" for name in given - own]
        lines += [f"{label!r} is a label without a line" for label in own - given]
        raise BadInput(f"{file} has labels and other names: write each label once, in any order, or for each "
                       "of them, in label order, another name", shortened(lines))
    assumed = not numeric
    if len(names) != len(labels):
        if not numeric or int(labels[0]) == 1 or int(labels[-1]) >= len(names):
            numbers = f" ({labels[0]} to {labels[-1]})" * numeric
            raise BadInput(f"{file} has {len(names)} names for {len(labels)} classes{numbers}: give each a "
                           "line, in label order")
        names, assumed = [names[int(label)] for label in labels], int(labels[0]) > 0
    if assumed:
        pairs = [f"{label} is {name}" for label, name in zip(labels, names)]
        note(f"{file}, taken in label order: {', '.join(pairs[:3])}{', ...' * (len(pairs) > 3)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        note(f"{file} names several classes {twice[0]}: figures cannot tell them apart")
    return names


@dataclass
class LabelledFolder:
    """Labelled images: `targets[i]` is the index in `labels` of the image `names[i]` below `root`."""

    root: Path
    names: list
    targets: list
    labels: list
    class_names: list

    def fingerprint(self):
        """A checksum of the names of the images."""
        return hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape")).hexdigest()

    def keep(self, indices):
        """The images at `indices`, with the same labels and class names."""
        names, targets = ([values[i] for i in indices] for values in (self.names, self.targets))
        return replace(self, names=names, targets=targets)


def image_names(folder, skip_bad, with_labels=False, names=None, written=()):
    """The `names` of a folder's images (`list_files`): each is a file and, for training, has a label.

    With `skip_bad` every file is decoded too, and the bad ones are left out, with a note. Raises BadInput for
    bad files (all are listed) without `skip_bad`, and where nothing is left.
    """
    folder = Path(folder)
    names = list_files(folder, written) if names is None else names
    bad = unusable(folder, names, with_labels)
    if skip_bad:
        bad.update(undecodable(folder, [name for name in names if name not in bad]))
    return without_bad(folder, names, bad, skip_bad)


def unusable(folder, names, with_labels):
    """{name: reason} of the files that are no readable file or, `with_labels`, carry no label."""
    bad = {name: problem for name in names if (problem := unreadable(folder / name))}
    if with_labels:
        unlabelled = [name for name in names if label_of(name) is None]
        bad.update(dict.fromkeys(unlabelled, "has no label: name it {class}_{id}.ext"))
    return bad


def without_bad(folder, names, bad, skip_bad):
    """The names that are not in `bad`, {name: reason}, with a note; BadInput as `image_names`."""
    if bad and not skip_bad:
        raise bad_files(folder, bad, len(names))
    if len(bad) == len(names):
        raise BadInput(f"{folder} holds no image that can be used")
    used = [name for name in names if name not in bad]
    if bad:
        note(f"left out {len(bad)} bad file{'s' * (len(bad) > 1)}: {', '.join(shortened(bad))}")
    lost = set(map(label_of, bad)) - set(map(label_of, used)) - {None}
    if lost:
        note(f"{folder} has no good file left of the classes {', '.join(shortened(lost))}")
    return used


def read_training_folder(folder, classes_file, skip_bad=False, names=None):
    """A training folder as a LabelledFolder, of the `names` or else of those of `image_names`.

    BadInput of that, for mixed layouts and one class.
    """
    folder = Path(folder)
    names = names or image_names(folder, skip_bad, with_labels=True)
    layouts = {"/" in name: name for name in names}
    if len(layouts) > 1:
        both = ", ".join(layouts.values())
        raise BadInput(f"{folder} mixes two layouts ({both}): use a subfolder a class, or none")
    labels = in_label_order(map(label_of, names))
    if len(labels) < 2:
        raise BadInput(f"{folder} holds one class, {labels[0]}: training needs two")
    if alike := [label for label, count in Counter(map(str.casefold, labels)).items() if count > 1]:
        note(f"{folder} has several classes {alike[0]} that differ in upper and lower case alone")
    index = {nfc(label): i for i, label in enumerate(labels)}
    targets = [index[nfc(label_of(name))] for name in names]
    return LabelledFolder(folder, names, targets, labels, class_names(labels, Path(classes_file)))


def stratified_holdout(targets, fraction, seed):
    """Hold a stratified `fraction` of the images out: (indices to train on, indices held out), both sorted.

    The parts held out of the classes differ by rounding alone (largest remainder, ties by `seed`); at least
    one image is held out, and each class has one left: else BadInput. A fraction of 0 holds out nothing.
    """
    if fraction == 0:
        return list(range(len(targets))), []
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(np.equal(targets, i))) for i in range(max(targets) + 1)]
    quota = np.array([len(indices) * fraction for indices in members])
    count = np.minimum(np.floor(quota).astype(int), [len(indices) - 1 for indices in members])
    missing = max(1, round(len(targets) * fraction)) - count.sum()
    for target in np.lexsort((rng.random(len(members)), count - quota)):
        if missing > 0 and count[target] < min(quota[target], len(members[target]) - 1):
            count[target] += 1
            missing -= 1
    if count.sum() == 0:
        raise BadInput(f"--holdout {fraction} would leave a class without images: pass --holdout 0")
    held_out = np.concatenate([indices[:n] for indices, n in zip(members, count)]).tolist()
    return sorted(set(range(len(targets))) - set(held_out)), sorted(held_out)


@contextlib.contextmanager
def random_streams(*entropy):
    """Python's, NumPy's and torch's (CPU) random streams start from `entropy` inside, and go on outside.

    `entropy` are numbers below 2^32. In a loader's process, where nothing is drawn outside, the streams do
    not go on: to keep them takes 0.2 ms.
    """
    outside = torch.utils.data.get_worker_info() is None
    before = outside and (random.getstate(), np.random.get_state(), torch.get_rng_state())
    words = np.random.SeedSequence(np.array(entropy, np.uint32)).generate_state(3)  # quicker than from ints
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would reset the GPU's stream too
    try:
        yield
    finally:
        if before:
            python, numpy, generator = before
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(generator)


class ImageDataset(torch.utils.data.Dataset):
    """Images as (transform(image), target), by index.

    With `seed`, in training, by (epoch, index): the augmentation depends on (seed, epoch, index) alone, not
    on the number of workers or what was loaded before.
    """

    def __init__(self, root, names, targets, transform, seed=None):
        self.root, self.names, self.targets = Path(root), names, targets
        self.transform, self.seed = transform, seed

    def __len__(self):
        return len(self.names)

    def __getitem__(self, key):
        index = key if self.seed is None else key[1]
        image = load_image(self.root / self.names[index])
        with contextlib.nullcontext() if self.seed is None else random_streams(self.seed, *key):
            return self.transform(image), self.targets[index]
