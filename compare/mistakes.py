"""Which classes a setting takes for each other, and which photos no setting gets right."""

from dataclasses import dataclass

import numpy as np

from compare.statistics import confusion_counts, most_confused

PHOTOS_A_PAIR = 3


@dataclass
class Mistake:
    """A photo, the index of an image, that was taken for the class `predicted`, with which probability."""

    image: int
    predicted: int
    probability: float


def confusion(setting):
    """The confusion counts of a setting, mean over seeds: (classes, classes), a row a true class."""
    images = setting.images
    return np.mean([confusion_counts(images.targets, run.predicted, len(images.labels)) for run in setting.runs], 0)


def confused_pairs(setting):
    """The pairs of classes that are most often taken for each other: (mean count over seeds, i, j, mistakes).

    The mistakes are of up to `PHOTOS_A_PAIR` photos, each with the seed that was the most certain of it.
    """
    cells, found = answers(setting), []
    for count, i, j in most_confused(confusion(setting)):
        mistakes = sorted(cells.get((i, j), []) + cells.get((j, i), []), key=surest_first)
        found.append((count, i, j, mistakes[:PHOTOS_A_PAIR]))
    return found


def answers(setting):
    """The photos behind each cell (true class, predicted one) of a setting's confusions, right answers among them.

    A dict to lists of Mistakes: a photo's is that of the surest of the seeds that answered so; the surest come first.
    """
    found = {}
    for run in setting.runs:
        for image, (target, predicted) in enumerate(zip(setting.images.targets, run.predicted.tolist())):
            one = Mistake(image, predicted, float(run.confidence[image]))
            cell = found.setdefault((target, predicted), {})
            cell[image] = max(cell.get(image, one), one, key=lambda answer: answer.probability)
    return {key: sorted(cell.values(), key=surest_first) for key, cell in found.items()}


def surest_first(one):
    """What Mistakes are sorted by."""
    return -one.probability, one.image


def hard_photos(settings):
    """The photos that every seed of all settings (on the same images) gets wrong, the most certain mistakes first.

    Each is a Mistake with the class that most runs predicted, and that class's mean probability over all runs.
    """
    runs = [run for setting in settings for run in setting.runs]
    hard = np.flatnonzero(~np.any([run.correct for run in runs], 0))
    mean = np.mean([run.probabilities for run in runs], 0)
    found = []
    for image in hard:
        votes = np.bincount([run.predicted[image] for run in runs], minlength=mean.shape[1])
        predicted = int(max(np.flatnonzero(votes == votes.max()), key=lambda index: mean[image, index]))
        found.append(Mistake(int(image), predicted, float(mean[image, predicted])))
    return sorted(found, key=lambda one: -one.probability)
