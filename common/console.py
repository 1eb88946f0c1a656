"""What every script says and returns in the same way: arguments, remarks, errors and exit codes."""

import argparse
import functools
import math
import operator
import os
import sys
from pathlib import Path

from common.errors import BadInput, TrainingStopped


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with its errors in the one-line form of the others."""

    def error(self, message):
        print(f"error: {message} (try --help)", file=sys.stderr)
        raise SystemExit(2)


def number(kind, low=None, high=None, above=None):
    """An argparse type: a finite int or float (`kind`) of at least `low`, more than `above`, at most `high`."""
    bounds = [(low, "at least", operator.ge), (above, "more than", operator.gt), (high, "at most", operator.le)]
    bounds = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]

    def parse(text):
        value = kind(text)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (finite and all(holds(value, bound) for bound, _, holds in bounds)):
            wanted = " and ".join(f"{words} {bound}" for bound, words, _ in bounds)
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def picture_file(text):
    """An argparse type: the Path of a picture, in a format that matplotlib writes."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png, .pdf or .svg")
    return path


def remark(text):
    """Tell the user something that does not stop the work. Of several processes under torchrun only the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)


def reports_errors(main):
    """Decorate a script's `main(argv)`: it returns the exit code and prints errors of the user's as one line."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv) or 0
        except BadInput as error:
            print(f"error: {error}", *error.details, sep="\n  ", file=sys.stderr)
            return 2
        except TrainingStopped as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        except OSError as error:
            # disk full, no permission, a file where a folder should be: the system's own words name the file
            where = f": {error.filename}" if error.filename else ""
            print(f"error: {error.strerror or error}{where}", file=sys.stderr)
            return 2
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's; its name alone, so that --help need not import it
                raise
            print("error: the GPU's memory is full: pass a smaller --batch-size, or --device cpu", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped
