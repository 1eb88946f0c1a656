"""Photos with captions, in the layout of COCO, and the way from there to what a captioner is trained on.

    DIR/annotations/captions_train*.json     COCO's captions format: `images` (id, file_name), `annotations` (image_id, caption)
    DIR/train*/                              the photos, in the folder of the same ending: captions_train2017.json, train2017/
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from common.errors import BadInput
from datasets.decode import load_image


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
        return CaptionedFolder(self.root, [self.names[i] for i in indices], [self.captions[i] for i in indices])

    def pairs(self):
        """Each caption with its photo: two lists, (names, captions)."""
        pairs = [(name, caption) for name, captions in zip(self.names, self.captions) for caption in captions]
        return [name for name, _ in pairs], [caption for _, caption in pairs]


def read_captions(folder, split):
    """The photos and captions of the `split`, `train` or `val`, of a folder in COCO's layout; photos without one are left out.

    Raises BadInput for a missing folder or file, several that could be meant, and anything that is no captions file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: name a folder in COCO's layout")
    files = sorted((folder / "annotations").glob(f"captions_{split}*.json"))
    if len(files) != 1:
        found = f"{len(files)} files" if files else "no file"
        raise BadInput(f"{folder / 'annotations'} holds {found} captions_{split}*.json: keep one there, in COCO's format")
    file, root = files[0], folder / files[0].stem.removeprefix("captions_")
    if not root.is_dir():
        raise BadInput(f"{root} does not exist: put the photos of {file.name} there")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = {}
        for annotation in content["annotations"]:
            captions.setdefault(names[annotation["image_id"]], []).append(" ".join(annotation["caption"].split()))
        if not all(isinstance(name, str) for name in captions):
            raise TypeError("a file_name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file} is not a captions file in COCO's format ({type(error).__name__}: {error})") from error
    captions = {name: texts for name, texts in sorted(captions.items()) if any(texts)}
    if not captions:
        raise BadInput(f"{file} holds no captions")
    missing = [name for name in captions if not (root / name).is_file()]
    if missing:
        raise BadInput(f"{len(missing)} of {len(captions)} photos of {file} are missing from {root}:", missing[:20])
    return CaptionedFolder(root, list(captions), [[text for text in texts if text] for texts in captions.values()])


def random_holdout(count, fraction, seed):
    """Hold a `fraction` of `count` photos out, at least one: (indices to train on, indices held out), both sorted."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = max(1, round(count * fraction)) if fraction else 0
    if held_out >= count:
        raise BadInput(f"--holdout {fraction} of {count} photos would leave none to train on: pass --holdout 0")
    return sorted(order[held_out:]), sorted(order[:held_out])


class CaptionDataset(Dataset):
    """Photos with one caption each, as (transform(photo), encode(caption)).

    A key is an index, or (epoch, index) for training.
    """

    def __init__(self, root, names, captions, transform, encode):
        self.root, self.names, self.captions = Path(root), names, captions
        self.transform, self.encode = transform, encode

    def __len__(self):
        return len(self.names)

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        return self.transform(load_image(self.root / self.names[index])), self.encode(self.captions[index])
