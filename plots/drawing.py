"""Figures drawn beside the work that they are of, by processes of their own."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from common.errors import BadInput
from common.files import written_whole


class Drawing:
    """Inside, `draw` gives figures, half a second each, to other processes; at the end all are drawn.

    An error of one, a full disk for instance, comes out of a later `draw` or of the end of the context.
    """

    def __enter__(self):
        workers = len(os.sched_getaffinity(0)) + 1  # one may wait for the disk
        context = multiprocessing.get_context("fork")  # its processes have matplotlib imported
        self._pool = ProcessPoolExecutor(workers, context, _begin)
        self._pending, self._most = deque(), 2 * workers
        return self

    def __exit__(self, kind, *error):
        try:
            while self._pending and kind is None:
                self._finish_one()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def draw(self, path, function, *args, **kwargs):
        """Have `function(*args, path, **kwargs)` draw a picture file, written whole or not at all."""
        if len(self._pending) == self._most:  # the arrays of all would fill the memory
            self._finish_one()
        with _explaining_a_lost_process():
            self._pending.append(self._pool.submit(draw_whole, path, function, args, kwargs))

    def _finish_one(self):
        with _explaining_a_lost_process():
            self._pending.popleft().result()


def _begin():
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that this one draws for
    os.nice(10)  # they use the time that it leaves: its threads wait for one another where one is held up


def _end_with(parent):
    """A process that waits for work does not see that the one that it draws for was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _explaining_a_lost_process():
    try:
        yield
    except BrokenProcessPool as error:
        raise BadInput(
            "a process that draws figures was killed, perhaps for want of memory: free some") from error


def draw_whole(path, function, args, kwargs):
    """What a process of `Drawing` does for `draw`."""
    with written_whole(path) as temporary:
        function(*args, temporary, **kwargs)
