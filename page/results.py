"""Results of several runs: tables, curves, calibration, and confusion matrices with photos behind cells."""

import numpy as np

from compare.claims import HEADER, claims
from compare.mistakes import answers, classes_confused_most, confused_pairs, confusion
from compare.runs import reliability_curves, settings_curves
from compare.tables import difference_cells, settings_cells, table_row
from page.packing import jpeg, svg
from page.section import BY_CHANCE, Section, Table, open_photo, percent
from plots import calibration, curves

MOST_PHOTOS = 12  # behind a cell
THUMBNAIL = 88  # pixels


def section(study, image_folders):
    """The Section of a Study; photos may have moved to `image_folders`. Raises BadInput where one is gone."""
    settings, indices = study.settings, {}
    matrices, cells = zip(*(matrix(setting, indices) for setting in settings))
    names = [(images.folder, images.names[image]) for images, image in indices]
    data = {"photos": [jpeg(open_photo(folder / name, image_folders, name), THUMBNAIL, quality=80)
                       for folder, name in names], "cells": cells}
    rows = claims(settings, study.comparisons)
    return Section("results", "Results", summary(settings), data, context={
        "settings": Table("Settings", *settings_cells(settings)),
        "differences": Table("Differences in accuracy", *difference_cells(study.comparisons)),
        "claims": Table("Those that the runs support come first", HEADER, rows), "matrices": matrices,
        "curves": svg(curves.draw_settings_curves(settings_curves(settings))),
        "reliability": svg(calibration.draw_reliability(reliability_curves(settings))),
        "curves_caption": curves.CAPTION, "reliability_caption": calibration.CAPTION})


def summary(settings):
    """The Table of how often each setting is right, how confident it is, and what it mistakes most often."""
    rows = []
    for setting in settings:
        numbers, chance = table_row(setting), 1 / len(setting.images.labels)
        accuracy, *interval = (percent(numbers[name]) for name in ("accuracy", "ci95_low", "ci95_high"))
        excess = np.mean([run.confidence for run in setting.runs]) - numbers["accuracy"]
        confidence = f"{'over' if excess > 0 else 'under'}confident by {100 * abs(excess):.1f} points"
        confused = [f"{pair.name}: {pair.count} of {pair.images}" for pair in confused_pairs(setting)[:1]]
        rows.append([setting.name, accuracy, " to ".join(interval), percent(chance), f"{numbers['ece']:.3f}",
                     confidence, *(confused or [""])])
    return Table("Accuracy, calibration and mistakes, mean over seeds", [
        "setting", "accuracy", "95 % interval", BY_CHANCE, "ECE", "confidence", "most confused"], rows)


def matrix(setting, indices):
    """The confusion matrix of a setting for the template, and its photos by `ROW-COLUMN` for the script.

    The page's thumbnails are numbered in `indices` by (image set, image); new ones are added.
    """
    counts, images, photos = confusion(setting), setting.images, answers(setting)
    classes = classes_confused_most(counts)
    rows, cells = [[None] * len(classes) for _ in classes], {}
    for row, column in zip(*counts[np.ix_(classes, classes)].nonzero()):
        i, j = classes[row], classes[column]
        rows[row][column] = {"count": f"{round(counts[i, j], 1):g}", "share": counts[i, j] / counts[i].sum()}
        cells[f"{row}-{column}"] = {"total": len(photos[i, j]), "photos": [
            [indices.setdefault((images, answer.image), len(indices)), images.names[answer.image],
             answer.probability] for answer in photos[i, j][:MOST_PHOTOS]]}
    return {"name": setting.name, "names": [images.class_names[i] for i in classes], "rows": rows,
            "left_out": len(counts) - len(classes), "seeds": len(setting.runs),
            "accuracy": setting.mean("accuracy"), "images": len(images.names)}, cells
