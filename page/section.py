"""A section of the page, and the files that sections are made of."""

import zipfile
import zlib
from collections import namedtuple
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import BadImage, BadInput
from common.files import as_on_disk
from datasets.decode import load_image

BY_CHANCE = "by chance"  # the title of a column

# A table of texts: its caption, the titles of its columns, and its rows.
Table = namedtuple("Table", "caption header rows")


@dataclass
class Section:
    """What the template and the script of a view are given."""

    id: str  # of its element, and the name of its .html and .js file
    title: str
    summary: Table  # stands below the title
    data: dict  # plain values for the script
    blobs: dict = field(default_factory=dict)  # base64 texts by name, for the script to unpack
    context: dict = field(default_factory=dict)  # plain values and Tables for the template


def open_photo(path, folders, name=None):
    """The photo at a path, or else of its `name` in one of `folders`, as a PIL image; BadInput for none."""
    name = Path(name or Path(path).name).parent / Path(path).name
    for place in (Path(path), *(as_on_disk(Path(folder) / name) for folder in folders)):
        if place.is_file():
            try:
                return load_image(place)
            except (OSError, BadImage) as error:
                raise BadInput(f"{place} cannot be decoded: fix it, or draw its figures again") from error
    raise BadInput(f"{path} does not exist any more: name the folder of the photos with --images")


def drawn_files(folders, ending, photo_of):
    """The files of that ending that a script drew into folders, a dict to the names of their figures.

    Those of photos in subfolders lie in subfolders of the same names: `photo_of(file)` is the photo's path.
    """
    def has_photos_subfolder(file):
        with suppress(BadInput), refusing("it is of another script"):
            return Path(photo_of(file)).parent.name == file.parent.name

    names = {}
    for folder in folders:
        names.update((file, file.stem) for file in sorted(folder.glob(f"*.{ending}")))
        inner = filter(has_photos_subfolder, sorted(folder.glob(f"*/*.{ending}")))
        names.update((file, f"{file.parent.name}/{file.stem}") for file in inner)
    return names


@contextmanager
def refusing(message):
    """BadInput with this message where a file that the block reads is damaged, or holds something else."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile,
            zlib.error) as error:
        raise BadInput(message) from error


def read_npz(file):
    """The arrays of an .npz file as a dict."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def percent(share):
    """A share as text: `93.0 %`."""
    return f"{100 * share:.1f} %"
