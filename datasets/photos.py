"""The photos that a script draws figures of, and the names of the figures."""

from common.errors import BadInput
from datasets.images import list_files


def find_images(given):
    """The paths of the images named by files and folders, in order. BadInput for a missing one and equal stems."""
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
            raise BadInput(f"{first[path.stem]} and {path} would both have the figure of {path.stem}: rename one")
        first[path.stem] = path
    return paths


def refuse_to_overwrite(folder, ends, stems, inputs):
    """Raise BadInput where one of the outputs, STEM.END in a folder, would take the place of one of the inputs."""
    inputs = {path.resolve() for path in inputs}
    for path in (folder / f"{stem}.{end}" for stem in stems for end in ends):
        if path.resolve() in inputs:
            raise BadInput(f"--output-dir {folder}: a figure would overwrite {path.name} there: name another folder")
