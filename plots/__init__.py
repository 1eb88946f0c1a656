"""Figures are drawn to files, alike on every machine, whatever MPLBACKEND and a user's matplotlibrc say."""

import os

os.environ.pop("MPLBACKEND", None)  # a notebook's own, at which the import of matplotlib fails elsewhere

import matplotlib  # noqa: E402

matplotlib.rcdefaults()
