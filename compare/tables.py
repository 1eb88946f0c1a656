"""The tables and the text of a report, as Markdown and CSV."""

import csv
import io
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np

from compare.claims import LEVEL, NOT_SUPPORTED, OPEN, SUPPORTED, difference_in_words, p_in_words
from compare.runs import describe, distinct_names, in_words
from compare.statistics import wilson_interval

# The columns of the settings table: of the CSV file, above the Markdown table, and how a number is written there.
COLUMNS = [
    ("setting", "setting", str), ("image_set", "images", str), ("width", "width", "{:.0f}"),
    ("heads", "heads", "{:.0f}"), ("depth", "depth", "{:.0f}"), ("parameters", "parameters", "{:,.0f}"),
    ("seeds", "seeds", str), ("accuracy", "accuracy on val", "{:.3f}"),
    ("accuracy_low", "range over seeds", "{:.3f}"), ("accuracy_high", "", "{:.3f}"),
    ("ci95_low", "95 % interval", "{:.3f}"), ("ci95_high", "", "{:.3f}"), ("ece", "ECE", "{:.3f}"),
    ("gap", "train minus val", "{:+.3f}"), ("epochs_to_95", "epochs to 95 %", "{:.3g}"), ("passes", "passes", "{:,.0f}"),
    ("images_per_second", "images/s", "{:,.3g}"), ("minutes", "minutes", "{:.3g}"),
    ("peak_memory_mib", "peak memory (MiB)", "{:,.0f}"),
]


def table_row(setting):
    """The numbers of a setting by column: floats, texts, and None where config.json says nothing."""
    low, high = setting.range("accuracy")
    images = len(setting.images.names)
    ci95 = wilson_interval(setting.mean("accuracy") * images, images)
    return {"setting": setting.name, "image_set": setting.image_set,
            **{name: setting.model.get(name) for name in ("width", "heads", "depth", "parameters")},
            "seeds": " ".join(in_words(run.settings.get("seed")) for run in setting.runs),
            "accuracy": setting.mean("accuracy"), "accuracy_low": low, "accuracy_high": high,
            "ci95_low": ci95[0], "ci95_high": ci95[1],
            **{name: setting.mean(name) for name in ("ece", "gap", "epochs_to_95", "passes", "images_per_second",
                                                     "minutes", "peak_memory_mib")}}


def as_csv(header, rows):
    """CSV text; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def settings_csv(rows):
    names = [name for name, _, _ in COLUMNS]
    return as_csv(names, [[row[name] for name in names] for row in rows])


def markdown_table(header, rows):
    """A table in Markdown; `|` in a cell is escaped."""
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)]) + "\n"


def settings_cells(rows):
    """The settings table for people, (header, rows of texts): two columns of a range become one, the unknown a dash."""
    def cell(row, name, form):
        value = row[name]
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return "–"
        return str(value) if form is str else form.format(value)

    written = []
    for row in rows:
        cells = []
        for name, heading, form in COLUMNS:
            if heading:
                cells.append(cell(row, name, form))
            elif name == "accuracy_high" and " " not in row["seeds"]:
                cells[-1] = "one run"
            else:
                cells[-1] += f" to {cell(row, name, form)}"
        written.append(cells)
    return [heading for _, heading, _ in COLUMNS if heading], written


def notes(settings):
    """What the columns of the settings table mean, a bullet each."""
    sets = {setting.image_set: setting.images for setting in settings}
    held_out = {setting.held_out for setting in settings}
    watched = ("the held-out accuracy" if held_out == {True} else "the training accuracy (nothing was held out)"
               if held_out == {False} else "the held-out accuracy, or the training accuracy where nothing was held out,")
    lines = [
        *(f"{name}: {len(images.names)} labelled images of {len(set(images.targets))} classes."
          for name, images in sets.items()),
        "Accuracy is the mean over the seeds, its range that from the worst seed to the best.",
        "The 95 % interval is Wilson's at the mean accuracy and the number of images. All seeds see the same images, so "
        "more seeds do not narrow it: it says what other images would change, the range what another seed would.",
        "ECE is the expected calibration error in 15 bins of equal width: how far confidence is from accuracy.",
        "Train minus val: the last epoch's training accuracy, taken during the epoch with augmentation, minus the "
        "accuracy on val. It is negative where augmentation makes training harder than val.",
        f"Epochs to 95 %: the first epoch in which {watched} is at least 95 % of that of the last "
        "epoch, mean over seeds.",
        "Passes: forward-backward passes over a batch in the whole training, of which SAM takes two a batch.",
        "Images/s, minutes and peak memory are of the training process, mean over seeds: compare them between runs of one "
        "machine only.",
    ]
    return bullets(lines)


def sam_section(pairs, comparisons):
    """Adam against SAM: a row a pair, and how it was chosen."""
    if not pairs:
        return ("No two settings differ in SAM, the learning rate and the epochs alone, at equal epochs or equal passes; "
                "or nothing was held out that could choose between their learning rates.\n")
    rows = []
    for pair in pairs:
        found = comparisons.between(pair.sam, pair.plain)
        rows.append([f"equal {pair.at}", pair.plain.name, pair.sam.name, f"{100 * found.difference:+.1f}",
                     p_in_words(found.p), p_in_words(found.adjusted), pair.chosen or "the only one"])
    return markdown_table(["compared at", "without SAM", "with SAM", "SAM better by (points)", "McNemar", "Holm-adjusted",
                           "chosen as"], rows) + (
        "\nEqual passes: the number of forward-backward passes of the run without SAM is within 5 % of that with SAM. A "
        "learning rate is chosen by the held-out part of the training images, never by val.\n")


def sweep_names(sweeps):
    """A name for each sweep: what its settings share, with the settings in which sweeps of the same name differ."""
    first = [sweep[0].settings for sweep in sweeps]
    names = [f"{describe(settings)}, {settings['epochs']} epochs" for settings in first]
    return distinct_names(names, first, ignored={"lr"})


def sweep_section(sweeps):
    """The accuracies over the learning rates, a row a setting."""
    rows = []
    for name, sweep in zip(sweep_names(sweeps), sweeps):
        for setting in sweep:
            low, high = setting.range("accuracy")
            held_out = f"{setting.mean('held_out_accuracy'):.3f}" if setting.held_out else "–"
            over = f"{low:.3f} to {high:.3f}" if len(setting.runs) > 1 else "one run"
            rows.append([name, in_words(setting.settings["lr"]), held_out, f"{setting.mean('accuracy'):.3f}", over])
    return markdown_table(["settings", "lr", "held-out accuracy, best epoch", "accuracy on val", "range over seeds"],
                          rows)


def noise_section(comparisons):
    """Which differences exceed the noise, a sentence a pair."""
    if not comparisons:
        return "No two settings were evaluated on the same images.\n"
    return bullets(map(difference_in_words, comparisons)) + (
        f"\nThe p-values are McNemar's exact ones, two-sided, Holm-adjusted over all {len(comparisons)} comparisons: how often "
        "images like these would show such a difference between two settings that are equally good. Below "
        f"{LEVEL:g} a difference counts as more than the noise. An image counts for the setting of which the larger "
        "share of seeds gets it right; with one run each this is McNemar's test as it is. What another seed would "
        "change, a p-value does not say: that is what the ranges over seeds are for.\n")


def claims_section(claims):
    """The claims, those that the runs support first."""
    ordered = sorted(claims, key=lambda claim: (SUPPORTED, NOT_SUPPORTED, OPEN).index(claim.verdict))
    return bullets(f"**{claim.statement}: {claim.verdict}**: {claim.reason}." for claim in ordered)


def per_class_csv(settings):
    """The accuracy on each class by setting, mean over seeds; empty for classes without images and for other images."""
    header = ["image_set", "label", "name", "images", *(setting.name for setting in settings)]
    rows, seen = [], []
    for one in settings:
        images = one.images
        if images in seen:
            continue
        seen.append(images)
        targets = np.array(images.targets)
        for index, (label, name) in enumerate(zip(images.labels, images.class_names)):
            own = targets == index
            rows.append([one.image_set, label, name, own.sum(),
                         *(setting.correct[:, own].mean() if setting.images == images and own.any() else None
                           for setting in settings)])
    return as_csv(header, rows)


def mistake(images, one):
    """A Mistake in words: `1_7.jpg: beagle -> basset hound (0.83)`."""
    true = images.class_names[images.targets[one.image]]
    return f"{images.names[one.image]}: {true} -> {images.class_names[one.predicted]} ({one.probability:.2f})"


def pair_in_words(images, count, i, j):
    """A pair of classes and how often they are confused, of how many images."""
    total = images.targets.count(i) + images.targets.count(j)
    times = f"{count:.1f}".removesuffix(".0")
    return f"{images.class_names[i]} and {images.class_names[j]}: {times} of {total} images"


def confused_section(images, pairs):
    """The pairs of classes that are most often confused, a bullet each."""
    if not pairs:
        return "It makes no mistake on these images.\n"
    return "Most often confused, of the images of both classes, mean over seeds:\n\n" + bullets(
        pair_in_words(images, *pair[:3]) for pair in pairs)


def hard_photos_section(images, hard, runs, most):
    """The list of the photos that every run gets wrong, at most so many."""
    total = len(images.names)
    if not hard:
        return f"No photo of the {total} is wrong in every one of {runs} runs.\n"
    which = f"; the {most} surest mistakes" if len(hard) > most else ""
    return (f"{len(hard)} of the {total} photos are wrong in every one of {runs} runs (true class, what most runs "
            f"predict, its mean probability over the runs){which}:\n\n" + bullets(mistake(images, one) for one in hard[:most]))


def bullets(lines):
    return "".join(f"- {line}\n" for line in lines)


def slugs(names):
    """Distinct parts of file names: letters, digits, `_` and `-` of the names, numbered where two are the same."""
    found = []
    for name in names:
        slug = re.sub(r"[^\w-]+", "_", name).strip("_")[:80] or "setting"
        number = sum(slug == other or other.startswith(f"{slug}__") for other in found)
        found.append(f"{slug}__{number + 1}" if number else slug)
    return found


class Report:
    """A Markdown document that is written from top to bottom."""

    def __init__(self, title):
        self.parts = [f"# {title}\n"]

    def section(self, title, text=""):
        self.parts += [f"## {title}\n", text] if text else [f"## {title}\n"]

    def subsection(self, title):
        self.parts.append(f"### {title}\n")

    def paragraph(self, text):
        self.parts.append(text if text.endswith("\n") else f"{text}\n")

    def figure(self, name, words):
        """A figure of a file beside the document, with the words that explain it."""
        self.parts.append(f"![{Path(name).stem}]({quote(name)})\n\n{words}\n")

    def __str__(self):
        return "\n".join(self.parts)
