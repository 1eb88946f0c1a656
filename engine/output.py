"""One run at a time in an output folder."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from common.cli import note
from common.errors import BadInput

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder):
    """Keep other runs out of a folder, which is made if need be. Afterwards nothing is left of the lock.

    BadInput where another process holds it; a note where the file system has no locks. The lock is POSIX's,
    which ends with its process: that of flock() lives on in the loaders of a run that was killed.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(folder / LOCK, "a") as file:
            _take(file, folder)
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # something lies there: a run
            for path in made:
                path.rmdir()


def _take(file, folder):
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.path.exists(file.name) and os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except OSError as error:
        taken = error.errno not in (errno.EACCES, errno.EAGAIN)
        if taken:
            note(f"{folder} cannot be locked here ({error.strerror}): start no second run there")
    if not taken:  # or its holder has ended this moment, and removed it
        raise BadInput(f"--output {folder} is in use by another run: wait for its end, or name another "
                       "folder")
