"""Compare training runs: the settings table, the curves, what exceeds the noise, and the mistakes.

    python p1_report.py runs/tiny_adam runs/tiny_sam --output report
    python p1_report.py runs/*_seed* --output report --images photos/val

RUNS are output folders of p1_train.py, with or without their weights, each evaluated by p1_eval.py; runs
that differ in the seed alone are one setting. A run that is not finished or not evaluated is left out, with
what to do. DIR receives

    report.md                    all of it, with the figures
    table.md, table.csv          a row a setting
    runs.csv                     a row a run
    per_class.csv                the accuracy of each setting on each class
    curves.png                   loss and accuracy over epochs, and over forward-backward passes
    learning_rates.png           where settings differ in the learning rate alone
    calibration.png              accuracy against confidence
    confusion_NAME.png           which classes a setting takes for each other
    confused_NAME.png            photos of the pairs of classes that it confuses most
    hard_photos.png              photos that every setting gets wrong in every seed

A setting has the name of its recipe or of its run folders, or a letter; report.md says what each one is.
Nothing is trained or evaluated here.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, note, reports_errors
from common.errors import BadInput
from common.files import write_text, written_whole

MOST_HARD_PHOTOS, PHOTOS_A_ROW = 12, 4  # in the figure
MOST_CLASSES, MOST_CONFUSED = 40, 10  # in a confusion matrix, and in the one with numbers


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUNS", help="output folders of p1_train.py")
    add("--output", type=Path, required=True, metavar="DIR", help="where the report goes; is created")
    add("--images", type=Path, metavar="DIR",
        help="where the photos are, if they are no longer where p1_eval.py read them")
    add("--format", choices=["png", "pdf", "svg"], default="png", help="of the figures (%(default)s)")
    return parser


def refuse(args):
    """Raise BadInput for folders that are none, or not for a report."""
    if args.output.exists() and not args.output.is_dir():
        raise BadInput(f"--output {args.output} is a file: name a folder")
    if (args.output / "config.json").exists():
        raise BadInput(f"--output {args.output} holds a training run, whose curves.png a report would "
                       "overwrite: name another folder")
    if args.images and not args.images.is_dir():
        problem = "is not a folder" if args.images.exists() else "does not exist"
        raise BadInput(f"--images {args.images} {problem}: name the folder of photos that p1_eval.py read")


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_intermixed_args(argv)  # more runs may follow the flags
    refuse(args)

    # After the arguments, so that --help and typing errors answer at once.
    from compare import claims, comparisons, runs, tables
    from plots import calibration, curves
    from plots.style import save

    study = runs.Study(args.runs)
    for line in study.left_out:
        note(f"left out: {line}")
    settings, settings_table = study.settings, tables.settings_section(study.settings)
    claim_rows = claims.claims(settings, study.comparisons)

    report = tables.Report("What the runs say", args.format)
    report.section("Settings", settings_table)
    report.section("What may be claimed", tables.markdown_table(claims.HEADER, claim_rows))
    report.section("Which differences exceed the noise", tables.noise_section(study.comparisons))
    pairs = comparisons.sam_pairs(settings)
    report.section("Adam against SAM", tables.sam_section(pairs, study.comparisons))
    figure = curves.draw_settings_curves(runs.settings_curves(settings))
    report.section("Curves", report.figure("curves", figure, curves.CAPTION))
    if sweeps := comparisons.sweeps(settings):
        figure = curves.draw_learning_rates(comparisons.sweep_curves(sweeps))
        report.section("Learning rates", tables.sweep_section(sweeps),
                       report.figure("learning_rates", figure, curves.LEARNING_RATES_CAPTION))
    figure = calibration.draw_reliability(runs.reliability_curves(settings))
    report.section("Calibration", report.figure("calibration", figure, calibration.CAPTION))
    add_mistakes(report, settings, args.images)
    if study.left_out:
        report.section("Left out", "".join(f"- {line}\n" for line in study.left_out))

    for name, figure in report.figures.items():
        with written_whole(args.output / name) as temporary:
            save(figure, temporary)
    write_text(args.output / "table.md", settings_table)
    write_text(args.output / "table.csv", tables.settings_csv(settings))
    write_text(args.output / "runs.csv", tables.runs_csv(settings))
    write_text(args.output / "per_class.csv", tables.per_class_csv(settings))
    write_text(args.output / "report.md", str(report))
    print(f"{len(study.runs)} runs of {len(settings)} settings: see {args.output / 'report.md'}")


def add_mistakes(report, settings, folder):
    """A section a set of images; figures whose photos are neither there nor in `folder` are missing."""
    from compare.comparisons import group_by
    from compare.names import slugs

    by_images = group_by(settings, lambda setting: setting.images)
    suffixes = [f"_{slug}" for slug in slugs([same[0].image_set for same in by_images.values()])]
    for suffix, same in zip(suffixes if len(by_images) > 1 else [""], by_images.values()):
        add_mistakes_of(same, report, folder, suffix)
    if report.missing:
        others = " and others" * (len(report.missing) > 3)
        folders = " or ".join(map(str, filter(None, [folder, *(images.folder for images in by_images)])))
        note(f"{', '.join(report.missing[:3])}{others} are left out: not all of their photos are in {folders}"
             "; name their folder with --images")


def add_mistakes_of(settings, report, folder, suffix):
    """The photos that every run of settings on the same images gets wrong, and what each setting confuses."""
    from compare import mistakes, tables
    from plots.confusion import CAPTION, draw_confusion

    images, hard = settings[0].images, mistakes.hard_photos(settings)
    rows = [("", hard[i:i + PHOTOS_A_ROW]) for i in range(0, MOST_HARD_PHOTOS, PHOTOS_A_ROW) if i < len(hard)]
    title = f"Wrong in every run: {len(hard)} of {len(images.names)} photos"
    report.section(f"Mistakes on {settings[0].image_set}", tables.hard_photos_section(hard, settings),
                   photos(report, f"hard_photos{suffix}", title, rows, images, folder))
    for setting in settings:
        counts, pairs = mistakes.confusion(setting), mistakes.confused_pairs(setting)
        title = (f"{setting.name}: accuracy {setting.mean('accuracy'):.3f} on {len(images.names)} images, "
                 f"runs: {len(setting.runs)}")
        classes = (mistakes.classes_confused_most(counts, most) for most in (MOST_CLASSES, MOST_CONFUSED))
        matrix = draw_confusion(counts, *classes, images.class_names, title)
        rows = [(f"{pair.name}: {pair.count} of {pair.images} images", pair.mistakes) for pair in pairs]
        report.section(setting.name, report.figure(f"confusion_{setting.slug}", matrix, CAPTION),
                       tables.confused_section(pairs),
                       photos(report, f"confused_{setting.slug}", f"{setting.name}: most confused",
                              rows, images, folder), level=3)


def photos(report, name, title, rows, images, folder):
    """The text for a figure of rows of mistakes, (heading, mistakes) each, or that their photos are gone."""
    from compare.mistakes import load_photos
    from plots.photos import CAPTION, draw_photos

    loaded = [(heading, load_photos(images, mistakes, folder)) for heading, mistakes in rows]
    if not all(row for _, row in loaded):
        report.missing.append(f"{name}.{report.format}")
        return f"{report.missing[-1]} is left out: its photos were not found.\n"
    return report.figure(name, draw_photos(loaded, title), CAPTION) if loaded else ""


if __name__ == "__main__":
    sys.exit(main())
