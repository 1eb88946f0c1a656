"""The learning rate over a run."""

import math


def warmup_cosine(total, warmup):
    """The learning rate's factor at step 0 <= step < total: a linear rise over `warmup`, then a half cosine.

    factor(step) = (step + 1) / warmup                                          for step < warmup
                   (1 + cos(pi * (step - warmup) / (total - warmup))) / 2       from there on
    """

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, total - warmup)))) / 2

    return factor
