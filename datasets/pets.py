"""Oxford-IIIT Pet from its two archives, in the layout that `datasets.images` reads.

    python3 -m datasets.pets images.tar.gz annotations.tar.gz p1_data

    DIR/classes.txt                    one breed a line, in label order
    DIR/train/{label}_{id}.jpg         the photos of the official trainval.txt
    DIR/val/{label}_{id}.jpg           those of test.txt
    DIR/masks/train/{label}_{id}.png   their trimaps (1 the animal, 2 background, 3 the border), and masks/val

Labels count from 0; Bengal_3 has the id 3. It needs the standard library alone.
"""

import contextlib
import gzip
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from common.cli import ArgumentParser, reports_errors
from common.errors import BadInput

LISTS = {"train": "annotations/trainval.txt", "val": "annotations/test.txt"}
ROW = re.compile(r"([A-Za-z_]+_([0-9]+))\s+([1-9][0-9]{0,3})\b")  # photo and its id, label from 1, and more


@contextlib.contextmanager
def _opened(path):
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
            while stream.read(2**20):  # to the end, where gzip's checksum is
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadInput(f"{path} is damaged or not a .tar.gz archive: remove it and fetch it again") from error


def _extract(path, targets):
    """Write the files that `targets` wants, {name in the archive: Path}; return the names that are missing.

    No name in the archive becomes a path. Links, devices and paths that leave its folder are refused anyway.
    """
    missing = set(targets)
    with _opened(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not (member.isreg() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                raise BadInput(f"{path} holds {name}, a link, a device or outside its folder: fetch another")
            if member.isdir() or str(name) not in targets:
                continue
            with open(targets[str(name)], "wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file)
            missing.discard(str(name))
    return sorted(missing)


def _read_lists(annotations):
    """(photo, such as Bengal_3, label, split) for each row of the official lists."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {split: Path(folder) / split for split in LISTS}
        if not _extract(annotations, {LISTS[split]: path for split, path in paths.items()}):
            rows = [(ROW.match(line), split) for split, path in paths.items()
                    for line in path.read_text(errors="replace").splitlines()]
            if rows and all(row for row, _ in rows) and all(
                    len({row.group(*parts) for row, _ in rows}) == len(rows) for parts in ((1,), (2, 3))):
                return [(row[1], int(row[3]) - 1, split) for row, split in rows]
    raise BadInput(f"{annotations} does not hold the two lists of Oxford-IIIT Pet: fetch another")


def arrange(images, annotations, folder):
    """Write the data set `folder`, which appears when it is whole; return (photo, label, split) for each.

    Raises BadInput for an archive that is damaged, hostile or another one, and for a folder that exists.
    """
    if folder.exists():
        raise BadInput(f"{folder} exists: remove it, or name another folder")
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for part in ("train", "val", "masks/train", "masks/val"):
            (partial / part).mkdir(parents=True)
        rows = _read_lists(annotations)
        files = [(photo, split, f"{label}_{photo.rpartition('_')[2]}") for photo, label, split in rows]
        _extract(annotations, {f"annotations/trimaps/{photo}.png": partial / "masks" / split / f"{name}.png"
                               for photo, split, name in files})
        missing = _extract(images, {f"images/{photo}.jpg": partial / split / f"{name}.jpg"
                                    for photo, split, name in files})
        if missing:
            raise BadInput(f"{images} lacks {len(missing)} of {len(rows)} photos, {missing[0]} among them: "
                           "fetch another")
        breeds = {label: photo.rpartition("_")[0] for photo, label, _ in rows}
        (partial / "classes.txt").write_text("".join(f"{breeds[label]}\n" for label in sorted(breeds)))
        partial.rename(folder)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk names no file
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


@reports_errors
def main(argv=None):
    parser = ArgumentParser(__doc__, stdlib_only=True, prog="python3 -m datasets.pets")
    for name in ("images", "annotations", "folder"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(argv)
    _, labels, splits = zip(*arrange(args.images, args.annotations, args.folder))
    print(f"{args.folder}: {splits.count('train')} photos in train, {splits.count('val')} in val, "
          f"{len(set(labels))} classes")


if __name__ == "__main__":
    sys.exit(main())
