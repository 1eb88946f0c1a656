"""Files that are written whole or not at all, and tensor files that are read without running code."""

import argparse
import contextlib
import fcntl
import functools
import glob
import hashlib
import os
import pickle
import re
import shutil
import tempfile
import unicodedata
import warnings
import zipfile
from pathlib import Path

from common.errors import BadInput

MOST_CLAIMED = 2**30  # bytes that a tensor may take beyond what a file stores of it, as a repeated one may
STRANGERS = {  # what is found in the place of photos and weights, by its first bytes
    rb"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    rb"\s*<(!doctype|html)": "a web page, not the file itself: download that",
    rb".{4}ftyp(hei|hev|mif|msf)": "HEIC, which Pillow cannot read: save it as JPEG or PNG",
    rb".{4}ftyp": "a video",
}


@contextlib.contextmanager
def written_whole(path, previous=None):
    """A temporary path that takes the place of `path`, flushed to disk, unless an error ends the block.

    The file that was there before becomes `previous`, if that is given.
    """
    path = Path(path)
    _refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with contextlib.suppress(OSError):  # of a mount without permissions, such as FAT or a cloud's
            temporary.chmod(0o666 & ~umask)  # what open() would have given; mkstemp's files are private
        if previous and path.exists():
            path.replace(previous)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # of a file system that flushes no folders
            os.fsync(folder)
        os.close(folder)
    except OSError as error:
        error.filename = str(path)  # a failed write names no file, and other calls name the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _refuse_folder(path):
    if path.is_dir():
        raise BadInput(f"{path} is a folder: name a file")


def refuse_missing(path, wanted, folder=False):
    """Raise BadInput unless the Path is a file, or a folder; the message asks for what is `wanted`."""
    if not (path.is_dir() if folder else path.is_file()):
        problem = f"is not a {'folder' if folder else 'file'}" if path.exists() else "does not exist"
        raise BadInput(f"{path} {problem}: name {wanted}")


def nfc(text):
    """A name in the one of Unicode's forms in which names are compared: macOS often writes the other one."""
    return unicodedata.normalize("NFC", text)


def as_on_disk(path):
    """The Path, or the one that exists in its place with names in another of Unicode's forms."""
    if path.exists() or str(path).isascii():
        return path
    folder = as_on_disk(path.parent)
    if not folder.is_dir():
        return path
    return folder / _names_by_nfc(folder, folder.stat().st_mtime_ns).get(nfc(path.name), path.name)


@functools.lru_cache(4)
def _names_by_nfc(folder, changed):
    return {nfc(name): name for name in os.listdir(folder)}


def refuse_unwritable(*paths):
    """Raise BadInput or OSError for files that could not be written, before the work. Makes nothing."""
    for path in paths:
        _refuse_folder(path)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            error.filename = str(path)  # not the temporary one's
            raise


def remove_leftovers(path):
    """Remove the temporary files beside `path` of processes that were killed in `written_whole(path)`."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-????????{path.suffix}"):
        # one that is being written is locked; what cannot be opened is somebody else's
        with contextlib.suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(folder):
    """A new folder to write into, which takes the place of `folder`, empty or none, when all is written."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text(path, text):
    """Write a text file whole, UTF-8 with `\\n` line ends."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stranger(path):
    """What a file is, and what to do, if it is one that is often in the place of a photo or weights; or None.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    return next((kind for begin, kind in STRANGERS.items() if re.match(begin, start, re.I | re.S)), None)


def read_tensors(path):
    """What a safetensors, torch or .npz file holds, on the CPU. The content says which it is, not the name.

    A torch file is opened with `weights_only=True`, so that nothing in it runs; torch.save's checksums, which
    torch.load ignores, are compared; no tensor may claim much more memory than the file stores of it. Raises
    BadInput for a missing, broken or unsafe file.
    """
    path = Path(path)
    inside = (path / "best.pt", path / "last.pt")  # of a run folder
    refuse_missing(path, next((str(file) for file in inside if file.is_file()), "a weights file"))
    if kind := stranger(path):
        raise BadInput(f"{path} is {kind}")
    try:
        content = _load(path)
    except BadInput:
        raise
    except pickle.UnpicklingError as error:
        call = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"opening it would run {call[1]}" if call else "torch's weights-only loader refuses it"
        raise BadInput(f"{path} is not a weights file: {reason}; save its weights alone") from error
    except Exception as error:  # a broken archive raises RuntimeError, EOFError, SafetensorError, ...
        raise BadInput(f"{path} is damaged or not a weights file: copy it again") from error
    size = path.stat().st_size
    for tensor in _tensors(content):
        dense = tensor.device.type == "cpu" and str(tensor.layout) == "torch.strided"
        stored = tensor.untyped_storage().nbytes() if dense else 0
        # torch 2.6 takes a file's word for how much it stores, and reads beyond its end
        if not dense or stored > size or tensor.nbytes > max(stored, MOST_CLAIMED):
            raise BadInput(f"{path} holds a tensor of {tensor.numel():,} numbers, of which it stores fewer: "
                           "save its weights as dense tensors")
    return content


def _load(path):
    import numpy
    import safetensors.torch
    import torch

    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # 8 bytes of length, then the JSON header
        return safetensors.torch.load_file(path)
    if start.startswith(b"PK") and _is_npz(path):
        with numpy.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    # scripts such as MAE's and BEiT's save their flags beside the weights: a Namespace, which runs nothing
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")  # of torch's, about files that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_npz(path):
    """Whether a zip archive is NumPy's, not torch's format since 1.6; neither compresses. Checks its content.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise BadInput(f"{path} is a TorchScript program: load it with torch.jit.load, and save its "
                           "state_dict() alone")
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise BadInput(f"{path} is a compressed archive, not a weights file: unpack it")
        if record := archive.testzip():
            raise zipfile.BadZipFile(record)
    return all(name.endswith(".npy") for name in names)


def _tensors(content):
    """All tensors in nested dicts, lists and tuples."""
    if hasattr(content, "untyped_storage"):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)
