"""The errors that a person can fix, and the exit codes of the scripts.

0 done; 1 another accuracy than `--expect`; 2 BadInput; 3 TrainingStopped; 130 and 143 after SIGINT and
SIGTERM.
"""


class BadInput(Exception):
    """Input or an environment that does not allow the work.

    Its message is one line that names the file or flag and says what to do; the scripts print it after
    `error: ` and exit with `exit_code`. `details` (lines, such as the list of bad files) follow it.
    """

    exit_code = 2

    def __init__(self, message, details=()):
        super().__init__(message)
        self.details = tuple(details)


class BadImage(BadInput):
    """A file that cannot be decoded as an image."""


class TrainingStopped(BadInput):
    """Training that cannot go on, the last good state saved."""

    exit_code = 3


class Interrupted(Exception):
    """Work that the signal `number` ended, its state saved."""

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_code = 128 + number
