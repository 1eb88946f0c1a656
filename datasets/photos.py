"""The photos that a script draws figures of, and the names of the figures."""

from pathlib import Path

from common.errors import BadInput
from common.files import nfc
from datasets.decode import bad_files, undecodable
from datasets.images import list_files


def find_photos(given):
    """The paths of images, given as files and folders, by the names of their figures: a dict.

    A name is STEM, or SUBFOLDER/STEM below a given folder. BadInput for a missing image, and for equal names.
    """
    paths = []
    for path in given:
        if path.is_dir():
            paths += [(name, path / name) for name in list_files(path)]
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


def refuse_undecodable(paths):
    """Raise BadInput that lists all images that cannot be decoded, before the first figure is drawn."""
    if bad := undecodable("", paths):
        raise bad_files("", bad, len(paths), remedy="fix them or leave them out")


def refuse_to_overwrite(folder, ends, stems, inputs):
    """Raise BadInput where an output, STEM.END in a folder, would take the place of an input."""
    inputs = {path.resolve() for path in inputs}
    for path in (folder / f"{stem}.{end}" for stem in stems for end in ends):
        if path.resolve() in inputs:
            raise BadInput(f"--output-dir {folder}: a figure would overwrite {path.name}: name another")
