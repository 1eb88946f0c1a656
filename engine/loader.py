"""Batches that processes load, on machines that give them little shared memory, or kill one."""

import os
import signal
import tempfile

import torch

from common.cli import note
from common.errors import BadInput, TrainingStopped
from common.machine import START_METHOD, ranks_here, usable_cores
from engine.signals import ignore_stop_signals

SHARED_MEMORY = "/dev/shm"
MOST = 16  # processes, unless more are asked for
WORK_AHEAD = 2  # batches that each process has ready: a DataLoader's prefetch_factor
LONGEST_FOLDER = 70  # characters: a socket's path may have 107, and multiprocessing adds up to 33
KILLED = ("a process that loads images was killed, perhaps for want of memory: free some, or pass a smaller "
          "--workers")
# what torch says of it, and what to say instead
LOST = {"exited unexpectedly": KILLED,
        "No space left on device": f"{SHARED_MEMORY} is full: make room in it, or pass --workers 0",
        "Too many open files": "too many open files: raise the limit (ulimit -n), or pass --workers 0"}


class LostWorker(TrainingStopped):
    """A process that loads images has ended, or can hand over no more of them."""


def loader_workers(number, batch_bytes, held=2):
    """The number of processes that load images: `number`, or for None as many as are of use here.

    That is one a core that we may use, at most 16, and no more than fit into shared memory with batches of
    `batch_bytes`, of which `held` are in use at once. Raises BadInput where `number` of them do not fit.
    """
    wanted = max(1, min(MOST, usable_cores() // ranks_here())) if number is None else number
    try:
        memory = os.statvfs(SHARED_MEMORY)
    except OSError:  # a system without it keeps no account of what processes share
        return wanted
    free = memory.f_bavail * memory.f_frsize // ranks_here()
    fitting = max(0, (free // batch_bytes - held) // WORK_AHEAD)
    if wanted <= fitting:
        return wanted
    needed = (WORK_AHEAD * wanted + held) * batch_bytes
    needs = (f"{wanted} processes that load images need {needed >> 20} MiB of {SHARED_MEMORY}, which has "
             f"{free >> 20} MiB free")
    if number:
        raise BadInput(f"--workers {number}: {needs}: pass --workers {fitting}, or give a container more "
                       "(docker run --shm-size 2g)")
    if number is None:
        note(f"{needs}: --workers {fitting} (docker run --shm-size 2g gives a container more)")
    return fitting


class Loader(torch.utils.data.DataLoader):
    """A DataLoader of which no process is lost without a word, and never in the middle of a step.

    `workers` is what `loader_workers` returned, `device` where its batches go; `options` are a DataLoader's.
    Raises LostWorker between two batches, within some seconds.
    """

    def __init__(self, dataset, workers, device, **options):
        if len(tempfile.gettempdir()) > LONGEST_FOLDER:
            tempfile.tempdir = "/tmp"  # for the sockets by which processes hand over memory
        super().__init__(dataset, num_workers=workers, pin_memory=device.type == "cuda",
                         worker_init_fn=ignore_stop_signals,
                         multiprocessing_context=START_METHOD if workers else None, **options)

    def __iter__(self):
        try:
            batches = super().__iter__()
            if self.num_workers:
                # Torch's handler raises an error wherever this process is, with SAM's perturbation on the
                # weights perhaps; without it a loader sees that a process is missing as it waits for a batch.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield from batches
        except (ConnectionError, EOFError) as error:  # it was killed as it handed over a batch
            raise LostWorker(KILLED) from error
        except RuntimeError as error:
            for words, reason in LOST.items():
                if self.num_workers and words in str(error):
                    raise LostWorker(reason) from error
            raise
