"""The errors that a person can mend."""


class BadInput(Exception):
    """Input or an environment that does not allow the work.

    Its message is one line that names the file or flag and says what to do; the scripts print it after `error: ` and
    exit with 2. `details` (lines, such as the list of bad files) follow it.
    """

    def __init__(self, message, details=()):
        super().__init__(message)
        self.details = tuple(details)


class BadImage(BadInput):
    """A file that cannot be decoded as an image."""


class TrainingStopped(Exception):
    """Training that cannot go on, the last good state saved; the scripts exit with 3."""
