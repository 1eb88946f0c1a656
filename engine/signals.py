"""SIGINT and SIGTERM while training: the step is finished and saved before the process ends."""

import atexit
import multiprocessing
import os
import signal

from common.machine import rank

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Inside this context SIGINT and SIGTERM do not end the process. A second one does, at once.

    Under torchrun a second one is ignored, too: when one process has ended, torchrun sends SIGTERM to the
    others, which may still be saving, and kills them after 30 seconds by itself. `number` is the signal's, 0
    before one came.
    """

    def __init__(self):
        self.number = 0

    def __enter__(self):
        self._handlers = {number: signal.signal(number, self._on_signal) for number in STOPPING}
        atexit.register(_kill_children)
        return self

    def __exit__(self, *error):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame):
        self.number = number
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN if under_torchrun else signal.SIG_DFL)
        if rank() == 0:
            more = "" if under_torchrun else "; once more stops at once"
            # not print: the signal may have come in the middle of one
            name = signal.Signals(number).name
            os.write(2, f"\nnote: {name}: finishing the step and saving{more}\n".encode())

    def until_stopped(self, batches):
        """The batches of a loader; after a signal the one in work is the last."""
        for batch in batches:
            yield batch
            if self.number:
                return


def ignore_stop_signals(worker):
    """The `worker_init_fn` of a DataLoader: a signal to the whole group of processes leaves workers alive.

    They end when the loader does, or within 5 seconds when the process that they load for has died.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() != multiprocessing.parent_process().pid:
        # it has died already, and the worker's own watch, which begins now, would take another for it
        os._exit(1)


def _kill_children():
    """At exit: multiprocessing would wait for workers that a traceback keeps alive, which ignore SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls a killed worker an error
    for child in multiprocessing.active_children():
        child.kill()
