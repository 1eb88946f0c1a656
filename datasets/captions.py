"""Photos with captions, in the layout of COCO, and the Dataset of their pairs.

    DIR/annotations/captions_train*.json   `images` (id, file_name), `annotations` (image_id, caption)
    DIR/train*/                            the photos; captions_train2017.json goes with train2017/
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import as_on_disk, refuse_missing
from datasets.images import ImageDataset


@dataclass
class CaptionedFolder:
    """Photos `names` below `root`; `captions[i]` are those of the photo `names[i]`, at least one."""

    root: Path
    names: list
    captions: list

    def fingerprint(self):
        """A checksum of the names and captions, which tells whether the data is still the same."""
        return hashlib.sha256(json.dumps([self.names, self.captions]).encode()).hexdigest()

    def keep(self, indices):
        """The photos at `indices`."""
        names, captions = ([values[i] for i in indices] for values in (self.names, self.captions))
        return CaptionedFolder(self.root, names, captions)

    def pairs(self):
        """Each caption with its photo: two lists, (names, captions)."""
        names = [name for name, captions in zip(self.names, self.captions) for _ in captions]
        return names, [caption for captions in self.captions for caption in captions]


def read_captions(folder, split):
    """The captioned photos of `split`, `train` or `val`, of a folder in COCO's layout, else BadInput.

    Whether the photos are there is for the caller to find.
    """
    folder = Path(folder)
    refuse_missing(folder, "a folder in COCO's layout", folder=True)
    files = sorted((folder / "annotations").glob(f"captions_{split}*.json"))
    if len(files) != 1:
        count = f"{len(files)} files" if files else "no file"
        raise BadInput(f"{folder / 'annotations'} holds {count} captions_{split}*.json: put one there")
    file, root = files[0], folder / files[0].stem.removeprefix("captions_")
    if not root.is_dir():
        raise BadInput(f"{root} does not exist: put the photos of {file.name} there")
    try:
        captions = _by_name(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"{file} is not a captions file in COCO's format ({reason})") from error
    if not captions:
        raise BadInput(f"{file} holds no captions")
    captions = {_as_on_disk(root, name): texts for name, texts in captions.items()}
    return CaptionedFolder(root, list(captions), list(captions.values()))


def _as_on_disk(root, name):
    return name if (root / name).is_file() else os.path.relpath(as_on_disk(root / name), root)


def _by_name(content):
    """The captions of each photo by its name, in the names' order; of a captions file's content."""
    names = {}
    for image in content["images"]:
        if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            raise ValueError(f"two photos have the id {image['id']}")
    captions = {}
    for annotation in content["annotations"]:
        text = " ".join(annotation["caption"].split())
        captions.setdefault(names[annotation["image_id"]], []).append(text)
    if not all(isinstance(name, str) for name in captions):
        raise TypeError("a file_name is no text")
    return {name: list(filter(None, texts)) for name, texts in sorted(captions.items()) if any(texts)}


def random_holdout(count, fraction, seed):
    """Hold a `fraction` of `count` photos out, at least one: sorted (indices to train on, held out)."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = max(1, round(count * fraction)) if fraction else 0
    if held_out >= count:
        raise BadInput(f"--holdout {fraction} of {count} photos leaves none to train on: pass --holdout 0")
    return sorted(order[held_out:]), sorted(order[:held_out])


class CaptionDataset(ImageDataset):
    """Pairs (transform(photo), encode(caption)), by index or, in training, by (epoch, index)."""

    def __init__(self, root, names, captions, transform, encode):
        super().__init__(root, names, captions, transform)
        self.encode = encode

    def __getitem__(self, key):
        photo, caption = super().__getitem__(key[1] if isinstance(key, tuple) else key)
        return photo, self.encode(caption)
