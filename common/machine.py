"""What a process may count on where it runs: its rank among others, its cores, how others are started."""

import contextlib
import os
import socket
import sys
from datetime import timedelta

if sys.platform == "win32":  # the next imports of a script would be a traceback
    print("error: Windows lacks the signals and locks that this needs: run it in WSL (wsl --install)",
          file=sys.stderr)
    raise SystemExit(2)

# fork shares what is imported; beside the threads of a Mac's own libraries it is not safe
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # the numbers of glibc's malloc.h
GPU_BUGS = "device-side assert", "illegal memory access", "misaligned address", "invalid"


def keep_freed_memory():
    """Have glibc reuse freed memory instead of giving it back to the system, which clears each new page.

    Other C libraries are left as they are.
    """
    import ctypes

    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def world_size():
    """The number of ranks; 1 without RANK, whatever else a cluster sets."""
    return _ranks()[1]


def rank():
    """The number of this rank, from 0. Rank 0 alone writes and reports."""
    return _ranks()[0]


def _ranks():
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):  # not those of torchrun: a process alone
        return 0, 1


def ranks_here():
    """The number of ranks that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1


def usable_cores():
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def attempt():
    """Which start of the ranks this is, from 0: torchrun's store outlives its restarts, with all that the
    ranks of before left in it."""
    # over several machines the counts differ, for each counts what failed on itself
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if alone else 0


def is_first_rank_to(text):
    """Whether this process is the first to call this with `text`; True where the others cannot be asked."""
    if world_size() == 1:
        return True
    from torch.distributed import TCPStore

    try:  # the store through which they meet: it counts
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection((address, port), 2).close()  # TCPStore would knock for seconds if it is gone
        store = TCPStore(address, port, timeout=timedelta(seconds=2))
        return store.add(f"{text}, attempt {attempt()}", 1) == 1
    except (KeyError, OSError, RuntimeError):  # not torchrun's, or gone
        return True


def is_lost_rank(error):
    """Whether a RuntimeError says that a rank we waited for has ended: torch's DistError, or gloo's words."""
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "/gloo/" in str(error)


def last_line(error):
    """The last line of what a library says, which is the reason, without the C++ calls that may follow."""
    *_, line = "", *str(error).split("Exception raised from")[0].strip().splitlines()
    return line


def gpu_failure(error):
    """Why the GPU failed and what to do, for a RuntimeError of torch that says so; None for any other.

    Its classes are known by name, so that --help need not import torch.
    """
    kind, reason = type(error).__name__, str(error).partition("\n")[0].removeprefix("CUDA error: ")
    if kind == "OutOfMemoryError" or "out of memory" in reason or "_STATUS_ALLOC_FAILED" in reason:
        return ("the GPU's memory is full: pass a smaller --batch-size (in training with a larger "
                "--accumulate, or --precision bf16), or --device cpu")
    if "busy or unavailable" in reason:
        return "another process has the GPU for itself: end it (nvidia-smi names it), or pass --device cpu"
    plain = str(error).startswith("CUDA error: ") and "_STATUS_" not in reason  # of torch before 2.8
    if (kind == "AcceleratorError" or plain) and not any(words in reason for words in GPU_BUGS):
        return (f"the GPU or its driver has failed ({reason}): where nvidia-smi fails as well, restart the "
                "machine; or pass --device cpu")
    return None
