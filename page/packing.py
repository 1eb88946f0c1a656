"""Numbers and pictures as text of a page."""

import base64
import io
import zlib

import numpy as np
from matplotlib import colormaps


def packed(array):
    """A uint8 array as base64."""
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def deflated(array):
    """A uint8 array as base64 of its compressed bytes (RFC 1950), which a page inflates when it first shows them."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array), 9)).decode()


def as_bytes(values, low=0.0):
    """An array (..., A, B) in `low` to its maximum as uint8, and the scales (...): values = low + scale * bytes, nearly."""
    scale = (values.max((-2, -1)) - low) / 255
    safe = np.where(scale > 0, scale, 1)[..., None, None]
    return np.rint((values - low) / safe).clip(0, 255).astype(np.uint8), scale


def jpeg(photo, side, quality=85):
    """A PIL image, reduced to `side` pixels at most, as a data address."""
    photo = photo.copy()
    photo.thumbnail((side, side))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def on_canvas(size, box, side):
    """A photo's (width, height) and a box (left, top, right, bottom) on it, where its longer side has `side` pixels."""
    scale = side / max(size)
    width, height = (max(1, round(scale * length)) for length in size)
    return [width, height], [length * scale for length, scale in zip(box, 2 * (width / size[0], height / size[1]))]


def svg(figure):
    """A matplotlib Figure as a data address."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def colours(name):
    """The 256 colours of a matplotlib map, red, green and blue of each, as base64."""
    return packed(np.rint(colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8))
