"""What long work has finished, kept beside its output until it ends: the same call goes on from there."""

import hashlib
import json
import time

from common.cli import note
from common.errors import BadInput
from common.files import read_tensors, remove_leftovers, written_whole

EVERY = 30  # seconds between two saves


class Unfinished:
    """A list of `rows`, saved now and then in a hidden file, and found there by the next call.

    Args:
        output: the Path of what will be written in the end; None keeps nothing.
        identity: all that the rows depend on, as JSON takes it. Rows of other work are not used.
    """

    def __init__(self, output, *identity):
        self.path = output and output.with_name(f".{output.name}.unfinished")
        self.identity = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()
        self.rows, self.saved = [], time.monotonic()
        if self.path and self.path.exists():
            try:
                content = read_tensors(self.path)
                self.rows = content["rows"] if content["identity"] == self.identity else []
            except (BadInput, KeyError, TypeError):  # nobody's: it is written anew
                pass
        if self.rows:
            note(f"{output}: goes on where the same call was interrupted")

    def append(self, row):
        """Add a row: of tensors, numbers, texts and lists, tuples and dicts of these."""
        import torch

        self.rows.append(row)
        if self.path and time.monotonic() - self.saved >= EVERY:
            with written_whole(self.path) as temporary:
                torch.save({"identity": self.identity, "rows": self.rows}, temporary)
            self.saved = time.monotonic()

    def remove(self):
        """Remove the file, when the output is written."""
        if self.path:
            remove_leftovers(self.path)
            self.path.unlink(missing_ok=True)


def identity_of(paths):
    """What tells whether files are still the same, without reading them: [(path, bytes, time of change)]."""
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
