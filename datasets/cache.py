"""Decoded images kept in memory, once for all the processes that load them."""

import math
import mmap
import multiprocessing
import os

import numpy as np
from PIL import Image

from common.errors import BadInput

GIB = 2**30


class Cache:
    """RGB images by name, as long as they fit; the first to come stay.

    No image is thrown out for another: an epoch asks for all images once, in an order of its own, so that which of them
    stay does not matter. The memory is shared with processes forked from this one, and taken as it fills.

    Args:
        limit: in GiB, more than 0.
        names: of all images that may come.

    Raises BadInput for more than the machine has.
    """

    def __init__(self, limit, names):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        if limit > machine:
            raise BadInput(f"--cache {limit:g}: this machine has {machine:.0f} GiB of memory: name less")
        self.index = {name: i for i, name in enumerate(names)}
        self.pixels = mmap.mmap(-1, math.ceil(limit * GIB))
        where = mmap.mmap(-1, len(names) * 3 * 8)
        self.where = np.frombuffer(where, np.int64).reshape(-1, 3)  # start in `pixels`, width, height; width 0: not there
        self.used = multiprocessing.get_context("fork").Value("q", 0)  # bytes, and the lock of all the rest

    def get(self, name):
        """The image of that name, or None."""
        with self.used.get_lock():
            start, width, height = self.where[self.index[name]].tolist()
        if width:
            return Image.frombytes("RGB", (width, height), memoryview(self.pixels)[start:start + width * height * 3])
        return None

    def put(self, name, image):
        """Keep an image, if there is room for it."""
        width, height = image.size
        with self.used.get_lock():
            start, end = self.used.value, self.used.value + width * height * 3
            if end <= len(self.pixels) and not self.where[self.index[name]].any():
                self.pixels[start:end] = image.tobytes()
                self.where[self.index[name]] = start, width, height
                self.used.value = end
