"""Arrays and photos as text of a page; packing.js unpacks them."""

import base64
import io
import zlib

import numpy as np


def packed(array):
    """The bytes of an array as base64."""
    return base64.b64encode(array.tobytes()).decode()


def deflated(array):
    """A uint8 array as base64 of its compressed bytes (RFC 1950)."""
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


def as_bytes(values, low=0.0):
    """An array (..., A, B) as uint8, and scales (...): values = low + scale * bytes, within half a scale."""
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


def svg(figure):
    """A matplotlib Figure as a data address."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def photo_with_box(photo, box, side):
    """A photo, the size (width, height) of its canvas, `side` or threefold at most, and a box on it."""
    scale = min(side / max(photo.size), 3)
    width, height = (max(1, round(scale * length)) for length in photo.size)
    stretch = 2 * (width / photo.width, height / photo.height)
    return {"photo": jpeg(photo, side), "size": [width, height],
            "box": [length * factor for length, factor in zip(box, stretch)]}
