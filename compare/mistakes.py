"""Which classes a setting takes for each other, and which photos no setting gets right."""

from collections import namedtuple

import numpy as np

from common.errors import BadImage
from compare.statistics import most_confused
from datasets.decode import load_image

MOST_CLASSES = 60  # of a confusion matrix whose names can still be read
PHOTOS_A_PAIR = 3
THUMBNAIL = (400, 400)

# A photo, the index of an image, that was taken for the class `predicted`, with which probability.
Mistake = namedtuple("Mistake", "image predicted probability")
# Two classes, `name` of both: of their `images`, `count` (a text) are confused, mean over seeds; `mistakes`
# are of up to PHOTOS_A_PAIR photos, each of the most confident seed.
ConfusedPair = namedtuple("ConfusedPair", "name count images mistakes")


def by_confidence(mistake):
    """What Mistakes are sorted by: the most confident first."""
    return -mistake.probability, mistake.image


def confusion(setting):
    """How many images of each class are taken for which, mean over seeds: (true classes, predicted ones)."""
    counts = np.zeros(2 * [len(setting.images.labels)])
    for run in setting.runs:
        np.add.at(counts, (setting.images.targets, run.predicted), 1)
    return counts / len(setting.runs)


def classes_confused_most(counts, most=MOST_CLASSES):
    """The `most` classes that a confusion matrix has room for, in order: those of the most confused pairs."""
    confused = [i for _, *pair in most_confused(counts, counts.size) for i in pair]
    return np.sort(list(dict.fromkeys([*confused, *range(len(counts))]))[:most])


def answers(setting):
    """Lists of Mistakes by cell (true class, predicted one) of the confusion matrix.

    The most confident ones come first; a photo's is that of the most confident seed.
    """
    of_seeds = [Mistake(image, *answer) for run in setting.runs
                for image, answer in enumerate(zip(run.predicted.tolist(), run.confidence.tolist()))]
    cells = {}
    for answer in sorted(of_seeds, key=by_confidence):
        cell = cells.setdefault((setting.images.targets[answer.image], answer.predicted), {})
        cell.setdefault(answer.image, answer)
    return {key: list(cell.values()) for key, cell in cells.items()}


def confused_pairs(setting):
    """The ConfusedPairs of a setting with the most mistakes."""
    images, cells, pairs = setting.images, answers(setting), []
    for count, i, j in most_confused(confusion(setting)):
        name = f"{images.class_names[i]} and {images.class_names[j]}"
        total = images.targets.count(i) + images.targets.count(j)
        mistakes = sorted(cells.get((i, j), []) + cells.get((j, i), []), key=by_confidence)
        pairs.append(ConfusedPair(name, f"{round(count, 1):g}", total, mistakes[:PHOTOS_A_PAIR]))
    return pairs


def hard_photos(settings):
    """The photos that every seed of all settings (on the same images) gets wrong, the most confident first.

    Each is a Mistake with the class that most runs predicted, and its mean probability over all runs.
    """
    runs = [run for setting in settings for run in setting.runs]
    mean = np.mean([run.probabilities for run in runs], 0)
    mistakes = []
    for image in np.flatnonzero(~np.any([run.correct for run in runs], 0)):
        votes = np.bincount([run.predicted[image] for run in runs], minlength=mean.shape[1])
        predicted = int(max(np.flatnonzero(votes == votes.max()), key=lambda index: mean[image, index]))
        mistakes.append(Mistake(int(image), predicted, float(mean[image, predicted])))
    return sorted(mistakes, key=by_confidence)


def as_texts(images, mistake):
    """A Mistake as the photo's name, its true class, the predicted one, and the probability."""
    return (images.names[mistake.image], images.class_names[images.targets[mistake.image]],
            images.class_names[mistake.predicted], f"{mistake.probability:.2f}")


def load_photos(images, mistakes, folder=None):
    """The thumbnails of mistakes, uint8 (height, width, 3), and their captions, as a list of pairs.

    They are of photos in a folder, or else where they were evaluated; None where not all are there any more.
    """
    for place in (folder or images.folder, images.folder):
        try:
            photos = [load_image(place / images.names[mistake.image]) for mistake in mistakes]
        except (OSError, BadImage):
            continue
        for photo in photos:
            photo.thumbnail(THUMBNAIL)
        return [(np.asarray(photo), "{}: {} -> {} ({})".format(*as_texts(images, mistake)))
                for photo, mistake in zip(photos, mistakes)]
    return None
