"""Figures drawn beside the work that they are of, by processes of their own."""

import contextlib
import multiprocessing
import os
import signal
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from common.errors import BadInput
from common.files import written_whole

# Runs of equal differences alone: a third of the time of the usual settings, for 3 % more size (photos and maps alike).
PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}


class Drawing:
    """Inside this context `draw` gives figures to other processes; at its end all are drawn.

    matplotlib draws one figure at a time in a process, half a second each. An error of one, a full disk for instance,
    comes out of a later `draw` or of the end of the context.
    """

    def __enter__(self):
        workers = len(os.sched_getaffinity(0)) + 1  # one may wait for the disk
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin)  # they have matplotlib imported
        self._pending, self._most = deque(), 2 * workers
        return self

    def __exit__(self, kind, *error):
        try:
            while self._pending and kind is None:
                self._finish_one()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def draw(self, path, function, *args, **kwargs):
        """Have `function(*args, path, **kwargs)` draw a picture file, which is written whole or not at all."""
        if len(self._pending) == self._most:  # the arrays of all would fill the memory
            self._finish_one()
        with _explaining_a_lost_process():
            self._pending.append(self._pool.submit(draw_whole, path, function, args, kwargs))

    def _finish_one(self):
        with _explaining_a_lost_process():
            self._pending.popleft().result()


def _begin():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that they draw for, which ends them
    os.nice(10)  # they use the time that it leaves: its threads wait for one another where one is held up


@contextlib.contextmanager
def _explaining_a_lost_process():
    try:
        yield
    except BrokenProcessPool as error:
        raise BadInput("a process that draws figures was killed, perhaps for want of memory: free some") from error


def draw_whole(path, function, args, kwargs):
    """What a process of `Drawing` does for `draw`."""
    with written_whole(path) as temporary:
        function(*args, temporary, **kwargs)


def place(figure, left, top, width, height):
    """Axes without ticks at a place on the page, in inches from its upper left corner."""
    page = figure.get_size_inches()
    axes = figure.add_axes((left / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1]))
    axes.set(xticks=[], yticks=[])
    return axes


def reduced(photo, inches, dpi):
    """A photo, uint8 (height, width, 3), with no more pixels than it has on the page at a width: a large one would be slow."""
    height, width = photo.shape[:2]
    shape = max(1, round(inches * dpi)), max(1, round(inches * dpi * height / width))
    return np.asarray(Image.fromarray(photo).resize(shape, Image.Resampling.BOX)) if shape[0] < width else photo


def save(figure, path, dpi):
    """Write a matplotlib figure to a picture file, in the format of its name.

    A PNG is drawn once, where `figure.savefig` goes through all of it twice, and has no alpha.
    """
    if path.suffix != ".png":
        figure.savefig(path, dpi=dpi)
        return
    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    size = canvas.get_width_height()
    Image.frombytes("RGB", size, canvas.buffer_rgba(), "raw", "RGBX").save(path, dpi=(dpi, dpi), **PNG)
