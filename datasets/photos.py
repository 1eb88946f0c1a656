"""The photos that a script draws figures of, and the names of the figures."""

import os

from common.errors import BadInput
from datasets.decode import bad_files, undecodable
from datasets.images import list_files

FIGURE = {".npz", ".json", ".png", ".pdf", ".svg"}


def find_images(given, written=()):
    """The paths of images, given as files and folders. BadInput for a missing one and for equal stems.

    What an earlier call may have `written`, in folders given there, is none of them.
    """
    paths = []
    for path in given:
        if path.is_dir():
            paths += _without_figures([path / name for name in list_files(path, written)])
        elif path.exists():
            paths.append(path)
        else:
            raise BadInput(f"{path} does not exist: name image files or folders")
    first = {}
    for path in paths:
        if path.stem in first:
            raise BadInput(f"{first[path.stem]} and {path} would have one figure, {path.stem}: rename one")
        first[path.stem] = path
    return paths


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
