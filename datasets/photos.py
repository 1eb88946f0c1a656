"""The photos that a script draws figures of, and the names of the figures."""

import os
from pathlib import Path

from common.errors import BadInput
from common.files import nfc
from datasets.decode import bad_files, undecodable
from datasets.images import list_files

FIGURE = {".npz", ".json", ".png", ".pdf", ".svg"}

def find_photos(given, written=()):
    """The paths of images, given as files and folders, by the names of their figures: a dict.

    A name is STEM, or SUBFOLDER/STEM below a given folder. BadInput for a missing image, and for equal names.
    What an earlier call may have `written`, in folders given there, is no photo.
    """
    paths = []
    for path in given:
        if path.is_dir():
            photos = _without_figures([path / name for name in list_files(path, written)])
            paths += [(photo.relative_to(path), photo) for photo in photos]
        elif path.exists():
            paths.append((path.name, path))
        else:
            raise BadInput(f"{path} does not exist: name image files or folders")
    photos, taken = {}, {}
    for name, path in paths:
        name = str(Path(name).with_suffix(""))
        if nfc(name) in taken:
            raise BadInput(f"{taken[nfc(name)]} and {path} would have one figure, {name}: rename one")
        photos[name] = taken[nfc(name)] = path
    return photos


def _without_figures(paths):
    """Leave out figures, known by their .npz, that lie beside their photos, of the same stem."""
    figures = {path for path in paths if path.suffix in FIGURE and path.with_suffix(".npz") in paths}
    photos = {path.with_suffix("") for path in paths if path not in figures}
    return [path for path in paths if path not in figures or path.with_suffix("") not in photos]


def refuse_undecodable(paths):
    """Raise BadInput that lists all images that cannot be decoded, before the first figure is drawn."""
    if bad := undecodable("", paths):
        raise bad_files("", bad, len(paths), remedy="fix them or leave them out")


def refuse_to_overwrite(folder, ends, stems, inputs):
    """Raise BadInput where an output, STEM.END in a folder, would take the place of an input."""
    inputs = set(map(os.path.realpath, inputs))
    for path in (folder / f"{stem}.{end}" for stem in stems for end in ends):
        if os.path.realpath(path) in inputs:
            raise BadInput(f"--output-dir {folder}: a figure would overwrite {path.name}: name another")
