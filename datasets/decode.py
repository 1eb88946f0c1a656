"""One file to an upright RGB image, or the reason why it cannot be one."""

import contextlib
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from common.errors import BadImage, BadInput
from common.files import stranger
from common.machine import usable_cores

LONGEST = 100  # times the shorter side: resized to what a model takes, a longer image would fill the memory
MOST_LISTED = 50  # bad files in a list
# of large photos (too large ones are refused) and of metadata that is broken
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path):
    """A file's first frame, upright, in RGB, alpha over white. Raises BadImage unless it is decoded whole."""
    try:
        if problem := unreadable(path):
            raise ValueError(problem)
        with Image.open(path) as image:
            width, height = image.size
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{width} x {height} pixels: one side is over {LONGEST} times the other")
            image.load()
            return to_rgb(upright(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parser met, from SyntaxError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = stranger(path) or "not an image"
        raise BadImage(f"{path}: {reason}") from error


def unreadable(path):
    """Why a path cannot be a photo, without waiting for what a pipe may send; None if it may be one."""
    try:
        status = os.stat(path)
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and os.path.islink(path)
        return f"is a link to {os.readlink(path)}, which does not exist" if dangling else error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "is no file but a folder, pipe, socket or device"
    return None if status.st_size else "is empty"


def upright(image):
    """The image turned as its EXIF orientation says; as it is where the EXIF data cannot be read."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # that of any other would be a copy
    except Exception:  # a photo with broken metadata is still a photo
        return image


def to_rgb(image):
    """Any PIL image as RGB: of 16 bits the high ones (Pillow alone would clip), alpha over white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer image: save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point image: save it with 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def undecodable(root, names, progress=iter):
    """Decode every file: a dict from the name of each bad one to the reason. `progress` wraps the reasons."""

    def reason(name):
        try:
            load_image(Path(root) / name)
        except BadImage as error:
            return str(error).removeprefix(f"{Path(root) / name}: ")

    with ThreadPoolExecutor(usable_cores()) as pool:
        return {name: why for name, why in zip(names, progress(pool.map(reason, names))) if why}


def bad_files(root, reasons, total, remedy="fix or remove, or pass --skip-bad to go on without"):
    """The BadInput that lists bad files, up to a limit; `reasons` maps their names to what is wrong."""
    which, where = f"{len(reasons)} file{'s' * (len(reasons) > 1)}", f" in {root}" if root else ""
    lines = shortened([f"{name}: {why}" for name, why in reasons.items()])
    return BadInput(f"{which} of {total}{where} cannot be used: {remedy}", lines)


def shortened(lines):
    """Sorted, and cut to a length that can be read."""
    more = len(lines) - MOST_LISTED
    return sorted(lines)[:MOST_LISTED] + [f"and {more} more"] * (more > 0)


@contextlib.contextmanager
def explaining_bad_images(root, names, **remedy):
    """Turn the first file that cannot be decoded into a list of all the bad ones: see `bad_files`."""
    try:
        yield
    except BadImage:
        reasons = undecodable(root, names)
        if not reasons:  # it decodes now: the medium is at fault, and the first message says where
            raise
        raise bad_files(root, reasons, len(names), **remedy) from None
