"""The errors that a person can mend."""


class BadInput(Exception):
    """Input or an environment that does not allow the work.

    Its message is one line that names the file or flag and says what to do; the scripts print it after `error: ` and
    exit with `exit_code`. `details` (lines, such as the list of bad files) follow it.
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
    """Work that the signal `number` ended, its state saved; the scripts exit with 128 + `number`."""

    def __init__(self, message, number):
        super().__init__(message)
        self.number = number
