"""A section of the page, and the files that sections are made of."""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import BadImage, BadInput
from datasets.decode import load_image


@dataclass
class Section:
    """What a section says and holds.

    Attributes:
        id, title: its address within the page, and its heading.
        story: its sentences.
        data: plain values for the script.
        blobs: base64 texts by name, which the script unpacks when it first needs them.
        shown: plain values for the template.
    """

    id: str
    title: str
    story: list
    data: dict
    blobs: dict = field(default_factory=dict)
    shown: dict = field(default_factory=dict)


class Photos:
    """Photos by the paths at which other scripts found them, or else by their names in `folders`."""

    def __init__(self, folders):
        self.folders = list(map(Path, folders))

    def find(self, path, name=None):
        """The photo as a PIL image; `name` is that within a folder, if not the last part of the path.

        Raises BadInput where it is nowhere, or cannot be decoded.
        """
        for place in (Path(path), *(folder / (name or Path(path).name) for folder in self.folders)):
            if place.is_file():
                try:
                    return load_image(place)
                except (OSError, BadImage) as error:
                    raise BadInput(f"{place} cannot be decoded: mend it, or draw its figures again") from error
        raise BadInput(f"{path} does not exist any more: name the folder of the photos with --images")


def read_npz(file):
    """The arrays of an .npz file as a dict. Raises ValueError for what is none, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except (OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is no whole .npz file") from error


def percent(share):
    """A share in words: `93 %`, `0.4 %`."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 or 0.9 < share < 1 else f"{100 * share:.0f} %"


def counted(number, noun):
    """`1 photo`, `3 photos`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
