"""The tables of a report, as Markdown and CSV."""

import csv
import io
from urllib.parse import quote

import numpy as np

from compare.comparisons import LEVEL, causes, differing
from compare.mistakes import as_texts
from compare.names import as_text, describe
from compare.statistics import wilson_interval
from engine.flags import optimizer_name

MOST_LISTED = 40  # photos
# Of a table of settings: a column's heading, the form of its numbers, and its names in `table_row`.
ACCURACY_COLUMNS = [("accuracy on val", "{:.3f}", "accuracy"),
                    ("range over seeds", "{:.3f}", "accuracy_low", "accuracy_high")]
SWEEP_COLUMNS = [("held-out accuracy, best epoch", "{:.3f}", "held_out_accuracy"), *ACCURACY_COLUMNS]
SHARED = ("arch", "optimizer", "lr", "batch_size", "epochs", "precision", "seed")  # said once, if all have it
COLUMNS = [
    ("setting", "{}", "setting"), ("images", "{}", "image_set"), ("width", "{:.0f}", "width"),
    ("heads", "{:.0f}", "heads"), ("depth", "{:.0f}", "depth"), ("parameters", "{:,.0f}", "parameters"),
    ("run folders", "{}", "folders"), ("seeds", "{}", "seeds"),
    ("held-out accuracy", "{:.3f}", "held_out_accuracy"), ("best epoch", "{:.3g}", "best_epoch"),
    ("training accuracy", "{:.3f}", "train_accuracy"), *ACCURACY_COLUMNS,
    ("95 % interval", "{:.3f}", "ci95_low", "ci95_high"), ("ECE", "{:.3f}", "ece"),
    ("train minus val", "{:+.3f}", "gap"), ("epochs to 95 %", "{:.3g}", "epochs_to_95"),
    ("passes", "{:,.0f}", "passes"), ("images/s", "{:,.3g}", "images_per_second"),
    ("minutes", "{:.3g}", "minutes"), ("peak memory (MiB)", "{:,.0f}", "peak_memory_mib"),
]
SETTINGS_NOTES = """\
- Held-out accuracy, best epoch: of the part of train/ that was held out, at the epoch whose weights are in
  best.pt. It alone may choose a setting: one that val chose would look better on val than it is.
- Accuracy is the mean over seeds, its range from the worst seed to the best: what another seed would change.
- The 95 % interval is Wilson's at the mean accuracy: what other images would change, which more seeds do not
  narrow.
- ECE: expected calibration error, 15 bins of equal width.
- Training accuracy: the last epoch's, taken during the epoch with augmentation. Train minus val: that minus
  the accuracy on val. It is negative where augmentation makes training harder than val.
- Epochs to 95 %: the first epoch whose held-out accuracy (training accuracy where nothing was held out) is at
  least 95 % of that of the last epoch, mean over seeds.
- Passes: forward-backward passes over a batch in the whole training, of which SAM takes two a batch.
- Images/s, minutes, peak memory: of the training process, mean over seeds; comparable on one machine only.
"""
DIFFERENCE = ["difference (points)", "better", "worse", "p", "adjusted p", "verdict",
              "differ in (first / second)"]
DIFFERENCE_NOTES = f"""
Difference: accuracy of the first minus that of the second, with its 95 % margin. Better, worse: images of
which a larger share of seeds is right in the first, or in the second. p: McNemar's exact test, two-sided;
adjusted by Holm's method for all differences of this report. A difference exceeds the noise where the
adjusted p is below {LEVEL:g} and the ranges over seeds do not overlap: p is about other images, not seeds.
"""
SAM_NOTES = """
Equal passes: the forward-backward passes without SAM are within 5 % of those with SAM. Learning rates are
chosen by the held-out part of the training images, never by val; without one, equal rates are compared.
"""


def table_row(setting):
    """The numbers of a setting by column: floats, texts, and None where config.json says nothing."""
    accuracies, images = setting.values("accuracy"), len(setting.images.names)
    ci95_low, ci95_high = wilson_interval(setting.mean("accuracy") * images, images)
    return {"setting": setting.name, "image_set": setting.image_set,
            "seeds": len(setting.runs), "folders": " ".join(str(run.folder) for run in setting.runs),
            **{name: setting.model.get(name) for name in ("width", "heads", "depth", "parameters")},
            **{name: setting.mean(name) for name in setting.runs[0].quantities},
            "accuracy_low": accuracies.min(), "accuracy_high": accuracies.max(),
            "ci95_low": ci95_low, "ci95_high": ci95_high}


def settings_cells(settings, columns=COLUMNS):
    """A table of settings for people, (header, rows of texts); what is not known is a dash."""
    rows = []
    for setting in settings:
        row = table_row(setting)
        cells = {heading: " to ".join(_cell(row[name], form) for name in names)
                 for heading, form, *names in columns}
        if len(setting.runs) == 1:
            cells["range over seeds"] = "one run"
        rows.append(list(cells.values()))
    return [heading for heading, *_ in columns], rows


def _cell(value, form):
    unknown = value is None or isinstance(value, float) and not np.isfinite(value)
    return "–" if unknown else form.format(value)


def settings_section(settings):
    """The settings table, what all runs share, what each setting is, and what the columns mean."""
    sets = {setting.image_set: setting.images for setting in settings}
    sizes = [f"- {name}: {len(images.names)} labelled images of {len(set(images.targets))} classes.\n"
             for name, images in sets.items()]
    table = markdown_table(*settings_cells(settings))
    return "".join([table, "\n", *legend(settings), *sizes, SETTINGS_NOTES])


def legend(settings):
    """Lines: what all runs share, and for each setting what is trained, and all in which it differs."""
    runs = [{**run.settings, "optimizer": optimizer_name(run.settings)}
            for setting in settings for run in setting.runs]
    shared = [_named(name, runs[0]) for name in SHARED if len({run.get(name) for run in runs}) == 1]
    names = dict.fromkeys(name for setting in settings
                          for name in differing(settings[0].settings, setting.settings))
    names = [name for name in names if name not in ("arch", "scratch", "optimizer", "sam", "adaptive")]
    lines = [f"All runs share: {', '.join(shared)}.\n\n"] if shared else []
    for setting in settings:
        values = [describe(setting.settings), *(_named(name, setting.settings) for name in names)]
        seeds = " ".join(as_text(run.settings.get("seed")) for run in setting.runs)
        lines.append(f"- {setting.name}: {', '.join(values)}; seeds: {seeds}.\n")
    return lines


def _named(name, settings):
    return f"{name.replace('_', ' ')} {as_text(settings.get(name))}"


def difference_cells(comparisons):
    """The differences between settings for people, (header, rows of texts and numbers)."""
    rows = []
    for one in comparisons:
        names, difference = (one.first.name, one.second.name), 100 * one.difference
        p_values = ("< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
                    for p in (one.p, one.adjusted))
        rows.append([*names, f"{difference:+.1f} ± {100 * one.margin:.1f}", one.wins, one.losses, *p_values,
                     one.verdict, causes(one.first.settings, one.second.settings)])
    return ["first", "second", *DIFFERENCE], rows


def noise_section(comparisons):
    """Which differences exceed the noise, a row a pair."""
    if not comparisons:
        return "No two settings were evaluated on the same images.\n"
    return markdown_table(*difference_cells(comparisons)) + DIFFERENCE_NOTES


def sam_section(pairs, comparisons):
    """SAM against the optimizer without it, a row a pair, and how their learning rates were chosen."""
    if not pairs:
        return "No two settings differ in nothing but SAM, lr and epochs, at equal epochs or passes.\n"
    _, differences = difference_cells(comparisons.between(pair.sam, pair.plain) for pair in pairs)
    rows = [[pair.equal, *difference, pair.choice] for pair, difference in zip(pairs, differences)]
    header = ["at equal", "with SAM", "without SAM", *DIFFERENCE, "learning rates"]
    return markdown_table(header, rows) + SAM_NOTES


def sweep_section(sweeps):
    """The accuracies over the learning rates, a row a setting."""
    names = [(name, as_text(setting.settings["lr"])) for name, sweep in sweeps for setting in sweep]
    header, rows = settings_cells([setting for _, sweep in sweeps for setting in sweep], SWEEP_COLUMNS)
    return markdown_table(["settings", "lr", *header], [[*name, *row] for name, row in zip(names, rows)])


def hard_photos_section(hard, settings):
    """The photos that every run gets wrong, a row each."""
    images, runs = settings[0].images, sum(len(setting.runs) for setting in settings)
    text = f"{len(hard)} of {len(images.names)} photos are wrong in every one of {runs} runs"
    if not hard:
        return f"{text}.\n"
    text += f"; the {MOST_LISTED} most confident are listed" * (len(hard) > MOST_LISTED)
    header = ["photo", "true", "predicted by most runs", "mean probability"]
    rows = [as_texts(images, mistake) for mistake in hard[:MOST_LISTED]]
    return f"{text}.\n\n{markdown_table(header, rows)}"


def confused_section(pairs):
    """The pairs of classes that are most often confused, a row each."""
    if not pairs:
        return "No mistake on these images.\n"
    return markdown_table(["most confused", "images, mean over seeds", "of"], [pair[:3] for pair in pairs])


def per_class_csv(settings):
    """The accuracy on each class by setting, mean over seeds; empty without images, and for other images."""
    rows = []
    for images, image_set in {setting.images: setting.image_set for setting in settings}.items():
        for index, (label, name) in enumerate(zip(images.labels, images.class_names)):
            of_class = np.array(images.targets) == index
            accuracies = [setting.correct[:, of_class].mean() if setting.images == images and of_class.any()
                          else None for setting in settings]
            rows.append([image_set, label, name, of_class.sum(), *accuracies])
    return _csv(["image_set", "label", "name", "images", *(setting.name for setting in settings)], rows)


def settings_csv(settings):
    columns = [name for _, _, *names in COLUMNS for name in names]
    return _csv(columns, [[row[name] for name in columns] for row in map(table_row, settings)])


def runs_csv(settings):
    """The numbers of each run, a row a run."""
    runs = [(setting.name, run) for setting in settings for run in setting.runs]
    header = ["setting", "run_folder", "seed", *runs[0][1].quantities, "checkpoint_sha256"]
    return _csv(header, [[name, run.folder.name, run.settings.get("seed"), *run.quantities.values(),
                          run.checkpoint_sha256] for name, run in runs])


def _csv(header, rows):
    # None becomes an empty field
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def markdown_table(header, rows):
    """A table in Markdown; `|` in a cell is escaped."""
    lines = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in (header, *rows)]
    head, *body = [f"| {line} |\n" for line in lines]
    return "".join([head, "|", "---|" * len(header), "\n", *body])


class Report:
    """A Markdown document, written from top to bottom."""

    def __init__(self, title, format="png"):
        self.format = format  # of the figures
        self.parts = [f"# {title}\n"]
        self.figures, self.missing = {}, []  # by the names of their files; the names of those without photos

    def section(self, title, *texts, level=2):
        self.parts += [f"{'#' * level} {title}\n", *filter(None, texts)]

    def figure(self, name, figure, caption):
        """Keep a figure for a file of this name, without its ending. Returns the text that shows it."""
        file = f"{name}.{self.format}"
        self.figures[file] = figure
        return f"![{name}]({quote(file)})\n\n{caption}\n"

    def __str__(self):
        return "\n".join(self.parts)
