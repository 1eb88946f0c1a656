"""The photos that a script draws figures of, and the names of the figures."""

from common.errors import BadInput
from datasets.decode import bad_files, undecodable
from datasets.images import list_files


def find_images(given):
    """The paths of images, given as files and folders. BadInput for a missing one and for equal stems."""
    paths = []
    for path in given:
        if path.is_dir():
            paths += [path / name for name in list_files(path)]
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
