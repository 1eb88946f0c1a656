"""What tests do with a page in Chromium."""

import base64
import io
import time

import numpy as np
from PIL import Image

ALL_SHOWN = "[...document.querySelectorAll('.readout')].every(each => each.textContent)"


def wait_until(page, condition):
    """Wait until an expression is true. Playwright's own wait evaluates text, which the page forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never: {condition}"
        time.sleep(0.02)


def wait_for_frame(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def image_of(address):
    """A data address as an RGBA array (height, width, 4)."""
    file = io.BytesIO(base64.b64decode(address.split(",")[1]))
    return np.asarray(Image.open(file).convert("RGBA")).astype(int)


def canvas_pixels(page, canvas):
    """What a canvas shows, as an array (height, width, 4)."""
    wait_for_frame(page)
    return image_of(page.evaluate(f"document.getElementById('{canvas}').toDataURL()"))


def hover(page, canvas, x, y):
    """Move the mouse to a place of a canvas, in shares of its sides."""
    page.locator(f"#{canvas}").scroll_into_view_if_needed()
    box = page.locator(f"#{canvas}").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    wait_for_frame(page)


def click(page, canvas, x, y):
    hover(page, canvas, x, y)
    page.mouse.down()
    page.mouse.up()
    wait_for_frame(page)


def readout(page, section):
    """The numbers that a section of the page shows of its map, as texts by their names."""
    wait_for_frame(page)
    terms, values = (page.locator(f"#{section}-readout {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(terms, values, strict=True))
