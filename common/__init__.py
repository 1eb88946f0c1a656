import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the next imports would be a traceback
    print("error: Python {}.{} is too old: 3.11 or newer".format(*sys.version_info), file=sys.stderr)
    raise SystemExit(2)
