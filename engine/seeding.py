"""Random streams, each started from numbers that say what it is for, and the order of the images."""

import random
from functools import lru_cache

import numpy as np
import torch


def seed_everything(seed):
    """Start the streams of Python, NumPy and torch (all devices) from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed, rank, epoch, step):
    """Start all streams anew for a step of training.

    So what it draws depends on these numbers alone: a run that goes on from its last step needs no stream of
    before, and no rank needs to know those of the others.
    """
    words = np.random.SeedSequence([seed, rank, epoch, step]).generate_state(1, np.uint64)
    seed_everything(int(words[0]))


class ShuffledBatches(torch.utils.data.Sampler):
    """The batches of an epoch, as lists of (epoch, index): an order that depends on (seed, epoch) alone.

    The ranks share each `world_size * batch_size` images of that order; `rank` is the number of this one.
    Index `size` stands for no image, where the last images of an epoch do not suffice for all ranks.

    The places of the indices `left_out` stay empty.

    `epoch` is set before each epoch, and `start`, the number of its batches to leave out.
    """

    def __init__(self, size, batch_size, seed, rank=0, world_size=1, left_out=()):
        self.size, self.batch_size, self.seed = size, batch_size * world_size, seed
        self.rank, self.world_size, self.left_out = rank, world_size, frozenset(left_out)
        self.epoch, self.start = 0, 0

    def __len__(self):
        return -(-self.size // self.batch_size) - self.start

    def order(self):
        """The indices of all images in the order of this epoch."""
        return _permutation(self.seed, self.epoch, self.size)

    def indices(self, start, count):
        """Those of the images at `count` places of that order, from the place `start`."""
        return [index for index in self.order()[start:start + count] if index not in self.left_out]

    def __iter__(self):
        order = self.order()
        for first in range(self.start * self.batch_size, self.size, self.batch_size):
            shard = order[first:first + self.batch_size][self.rank::self.world_size]
            yield [(self.epoch, index) for index in shard if index not in self.left_out] or [
                (self.epoch, self.size)]


@lru_cache(1)
def _permutation(seed, epoch, size):
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()
