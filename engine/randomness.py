"""Random streams: started from one seed, saved and put back, and the order of the images."""

import random

import numpy as np
import torch


def seed_everything(seed):
    """Start the streams of Python, NumPy and torch (all devices) from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state():
    """The state of all streams, as values that a checkpoint can hold."""
    kind, words, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (kind, words.tolist(), *rest), "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state):
    """Put all streams where `random_state` found them. A GPU's stream is left alone where the GPUs differ in number."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class ShuffledBatches(torch.utils.data.Sampler):
    """The batches of an epoch, as lists of (epoch, index): an order that depends on (seed, epoch) alone.

    `processes` of them share each `processes * batch_size` images of that order; `process` is the number of this one.
    Index `size` stands for no image, where the last images of an epoch do not suffice for all.

    `epoch` is set before each epoch, and `start`, the number of its batches to leave out, to go on in the middle.
    """

    def __init__(self, size, batch_size, seed, process=0, processes=1):
        self.size, self.batch_size, self.seed = size, batch_size * processes, seed
        self.process, self.processes = process, processes
        self.epoch, self.start = 0, 0

    def __len__(self):
        return -(-self.size // self.batch_size) - self.start

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size).tolist()
        for first in range(self.start * self.batch_size, self.size, self.batch_size):
            share = order[first:first + self.batch_size][self.process::self.processes]
            yield [(self.epoch, index) for index in share or [self.size]]
