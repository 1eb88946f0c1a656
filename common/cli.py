"""What every script says and returns in the same way: arguments, notes, errors and exit codes."""

import argparse
import functools
import math
import operator
import sys
from pathlib import Path

from common.errors import BadInput, Interrupted
from common.machine import gpu_failure, is_first_rank_to, is_lost_rank, last_line, rank


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with a script's docstring as its help, and its errors in the one-line form of the others.

    No flag may be abbreviated: what reads a flag before the parser, as `common.recipe` does, sees it whole.
    Packages that are too old are refused once the arguments are read, but not with `stdlib_only`.
    """

    def __init__(self, doc, stdlib_only=False, **options):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False, **options)
        self.stdlib_only = stdlib_only

    def parse_args(self, *args, **kwargs):
        arguments = super().parse_args(*args, **kwargs)
        if not self.stdlib_only:
            from common.packages import refuse_old  # only now: --help does not wait for it

            refuse_old()
        return arguments

    def error(self, message):
        print_error(f"error: {message} (try --help)")
        raise SystemExit(2)


def number(kind, low=None, high=None, above=None):
    """An argparse type: a finite int or float (`kind`), at least `low`, more than `above`, at most `high`."""
    bounds = [(bound, words, holds) for bound, words, holds in (
        (low, "at least", operator.ge), (above, "more than", operator.gt), (high, "at most", operator.le))
        if bound is not None]

    def parse(text):
        value = kind(text)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (finite and all(holds(value, bound) for bound, _, holds in bounds)):
            wanted = " and ".join(f"{words} {bound}" for bound, words, _ in bounds)
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


class SaveEvery:
    """An argparse type for `--save-every`: `200` counts steps, `60s` seconds."""

    def __init__(self, text):
        self.text, self.in_seconds = text, text.endswith("s")
        self.count = number(float if self.in_seconds else int, above=0)(text.removesuffix("s"))

    def __str__(self):
        return self.text

    def due(self, steps, seconds):
        """Whether it is time to save, so many steps and seconds after the last save."""
        return (seconds if self.in_seconds else steps) >= self.count


class ImageSize(tuple):
    """An argparse type: the (height, width) of an image, from `384` or `224x336`."""

    def __new__(cls, text):
        sides = [number(int, low=1, high=10**5)(side) for side in text.split("x")]
        if len(sides) > 2:
            raise argparse.ArgumentTypeError(f"{text} is not a size such as 384 or 224x336")
        return super().__new__(cls, (sides[0], sides[-1]))

    def __str__(self):
        return "x".join(map(str, self))


def picture_file(text):
    """An argparse type: the Path of a picture, in a format that matplotlib writes."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png, .pdf or .svg")
    return path


def one_line(text):
    """The text on one line, whatever the names of files in it hold."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def note(text):
    """Tell the user something that does not stop the work. Of several ranks only the first does."""
    if rank() == 0:
        print(f"note: {one_line(text)}", file=sys.stderr)


def print_error(line, *details):
    """Print why the work ends. Of several ranks with the same line, the first one does."""
    if is_first_rank_to(line):
        print(*map(one_line, [line, *details]), sep="\n  ", file=sys.stderr)


def reports_errors(main):
    """Decorate a script's `main(argv)`: it returns the exit code and prints the user's errors as one line."""

    @functools.wraps(main)
    def wrapped(argv=None):
        for stream in sys.stdout, sys.stderr:
            if getattr(stream, "errors", "") == "strict":  # a name that the encoding lacks gets escapes
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(argv) or 0
        except BadInput as error:
            print_error(f"error: {error}", *error.details)
            return error.exit_code
        except ModuleNotFoundError as error:
            if "." in (error.name or "."):  # not a package but a part of one
                raise
            from common.packages import missing

            print_error(f"error: {missing(error.name)}")
            return 2
        except OSError as error:
            # disk full, no permission, a file where a folder should be: the system's own words name the file
            where = f": {error.filename}" if error.filename else ""
            print_error(f"error: {error.strerror or error}{where}")
            return 2
        except RuntimeError as error:
            if is_lost_rank(error):
                print_error("error: another process of this run has failed", last_line(error))
                return 3
            if not (message := gpu_failure(error)):
                raise
            print_error(f"error: {message}")
            return 2
        except Interrupted as error:
            print_error(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            print_error("interrupted")
            return 130

    return wrapped
