"""Figures drawn beside the work that they are of, by processes of their own."""

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
from common.machine import START_METHOD, usable_cores


class Drawing:
    """Inside, `draw` gives figures, half a second each, to other processes; at the end all are drawn.

    An error of one, a full disk for instance, comes out of a later `draw` or of the end of the context.
    """

    def __enter__(self):
        workers = usable_cores() + 1  # one may wait for the disk
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context(START_METHOD), _begin,
                                         (os.getpid(),))
        self._pending, self._most = deque(), 2 * workers
        return self

    def __exit__(self, kind, error, _):
        try:
            if kind is BrokenProcessPool:
                raise error
            while self._pending and kind is None:
                self._pending.popleft().result()
        except BrokenProcessPool as lost:
            message = "a process that draws figures was killed, perhaps for want of memory: free some"
            raise BadInput(message) from lost
        finally:
            self._pool.shutdown(cancel_futures=True)

    def draw(self, path, function, *args, **kwargs):
        """Have `function(*args, path, **kwargs)` draw a picture file, written whole or not at all."""
        if len(self._pending) == self._most:  # the arrays of all would fill the memory
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(draw_whole, path, function, args, kwargs))


def _begin(parent):
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that this one draws for
    os.nice(10)  # they use the time that it leaves: its threads wait for one another where one is held up


def _end_with(parent):
    """A process that waits for work does not see that the one that it draws for was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def draw_whole(path, function, args, kwargs):
    """What a process of `Drawing` does for `draw`."""
    with written_whole(path) as temporary:
        function(*args, temporary, **kwargs)
