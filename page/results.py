"""The results of several runs: the settings table, curves, calibration, and confusion matrices with photos behind them."""

import numpy as np

from compare import figures
from compare.claims import Comparisons, claims, difference_in_words
from compare.mistakes import answers, confusion
from compare.runs import group_runs, read_runs
from compare.statistics import most_confused, wilson_interval
from compare.tables import pair_in_words, settings_cells, table_row
from page.packing import jpeg, svg
from page.section import Section, percent
from plots.report import most_mistaken

MOST_PHOTOS = 12  # behind a cell
THUMBNAIL = 88  # pixels


def section(folders, photos):
    """The Section of run folders that p1_train.py and p1_eval.py wrote, and a line for each folder that is left out.

    `photos` is a section.Photos. Raises BadInput for folders that are no runs, and for photos that are gone.
    """
    runs, left_out = read_runs(folders)
    settings = group_runs(runs)
    comparisons = Comparisons(settings)
    header, rows = settings_cells([table_row(setting) for setting in settings])
    thumbnails = {}  # by image set and image: their place in the list of the page

    def thumbnail(images, image):
        return thumbnails.setdefault((images, image), len(thumbnails))

    matrices = [matrix(setting, thumbnail) for setting in settings]
    names = [(images.folder, images.names[image]) for images, image in thumbnails]
    pictures = [jpeg(photos.find(folder / name, name), THUMBNAIL, 80) for folder, name in names]
    return Section(
        "results", "Results", story(settings, comparisons),
        {"photos": pictures, "cells": [one.pop("cells") for one in matrices]},
        shown={"header": header, "rows": rows, "matrices": matrices, "claims": claims(settings, comparisons),
               "curves": svg(figures.curves(settings)), "curves_words": figures.CURVES,
               "calibration": svg(figures.calibration(settings)), "calibration_words": figures.RELIABILITY},
    ), left_out


def matrix(setting, thumbnail):
    """The confusion matrix of a setting for the template; `cells` are its photos for the script, by `row-column`."""
    counts, images = confusion(setting), setting.images
    kept = most_mistaken(counts)
    found = answers(setting)
    names = [images.class_names[i] for i in kept]
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(counts / counts.sum(1, keepdims=True))
    return {
        "name": setting.name, "names": names, "left_out": len(images.labels) - len(kept),
        "seeds": len(setting.runs), "accuracy": setting.mean("accuracy"), "images": len(images.names),
        "rows": [[{"count": f"{counts[i, j]:.1f}".removesuffix(".0"), "share": shares[i, j]} if counts[i, j] else None
                  for j in kept] for i in kept],
        "cells": {f"{row}-{column}": {"total": len(found[i, j]), "photos": [
                      [thumbnail(images, one.image), images.names[one.image], one.probability]
                      for one in found[i, j][:MOST_PHOTOS]]}
                  for row, i in enumerate(kept) for column, j in enumerate(kept) if counts[i, j]}}


def story(settings, comparisons):
    """Four sentences about the most accurate setting."""
    best = max(settings, key=lambda setting: setting.mean("accuracy"))
    images, accuracy = best.images, best.mean("accuracy")
    low, high = wilson_interval(accuracy * len(images.names), len(images.names))
    rank = f", the most of {len(settings)} settings" if len(settings) > 1 else ""
    sentences = [f"{best.in_prose} answers {percent(accuracy)} of the {len(images.names):,} photos in {best.image_set} right "
                 f"(95 % interval {percent(low)} to {percent(high)}){rank}."]

    others = [one for one in comparisons if best in (one.first, one.second)]
    if others:
        closest = min(others, key=lambda one: abs(one.difference))
        sentences.append(f"Against the setting that comes closest: {difference_in_words(closest)}.")
    else:
        low, high = best.range("accuracy")
        seeds = (f"{len(best.runs)} seeds, from {percent(low)} to {percent(high)}" if len(best.runs) > 1
                 else "one seed, which does not say what another would give")
        sentences.append(f"That is of {seeds}.")

    pairs = most_confused(confusion(best), 1)
    sentences.append(f"No two classes are confused more often than {pair_in_words(images, *pairs[0])}." if pairs
                     else "It makes no mistake on them.")

    surer = np.mean([run.confidence.mean() for run in best.runs]) - accuracy
    leaning = "surer than it is right" if surer > 0 else "less sure than it is right"
    sentences.append(f"On average it is {leaning} by {100 * abs(surer):.1f} points; its expected calibration error is "
                     f"{best.mean('ece'):.3f}.")
    return sentences
