"""What the processes that torchrun starts can tell of each other without being connected."""

import os


def first_to(text):
    """Whether this process is the first to call this with `text`; True where the others cannot be asked."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore

    try:  # the store through which they meet: it counts
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=2))
        return store.add(text, 1) == 1
    except (KeyError, RuntimeError):  # not torchrun's, or gone
        return True


def is_lost_process(error):
    """Whether a RuntimeError says that a process we waited for has ended: a DistError of torch, or what gloo says."""
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "/gloo/" in str(error)
