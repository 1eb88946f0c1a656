"""Files from strangers: what would run code, and how much memory it takes to read them."""

import os
import re
from pathlib import Path


class Trap:
    """Unpickled without care, it makes the file `ran` in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/ran",)


def grown(work):
    """By how many MiB the work made the memory of this process grow at its most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: earlier tests took more
    before = peak()
    work()
    return peak() - before


def peak():
    """The most memory that this process held, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
