"""Compare training runs: the settings table, the curves, what exceeds the noise, and what the mistakes look like.

    python p1_report.py runs/tiny_adam runs/tiny_sam --output report
    python p1_report.py runs/*_seed* --output report --images photos/val

RUNS are output folders of p1_train.py, each evaluated by p1_eval.py; runs that differ in the seed alone are one setting.
A run that is not finished or not evaluated is left out, with the command that mends it. DIR receives

    report.md                    all of it, with the figures
    table.md, table.csv          a row a setting
    per_class.csv                the accuracy of each setting on each class
    curves.png                   loss and accuracy over epochs, and over forward-backward passes
    learning_rates.png           where settings differ in the learning rate alone
    calibration.png              accuracy against confidence
    confusion_NAME.png           which classes a setting takes for each other
    confused_NAME.png            photos of the pairs of classes that it confuses most
    hard_photos.png              photos that every setting gets wrong in every seed

Nothing is trained or evaluated here.
"""

import argparse
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, reports_errors
from common.errors import BadImage, BadInput

MOST_HARD_PHOTOS = 12  # in the figure
MOST_LISTED = 40
THUMBNAIL = (400, 400)


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUNS", help="output folders of p1_train.py")
    add("--output", type=Path, required=True, metavar="DIR", help="where the report goes; is created")
    add("--images", type=Path, metavar="DIR",
        help="where the photos are, if they are no longer where p1_eval.py read them")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_intermixed_args(argv)  # more runs may follow the flags
    if args.output.exists() and not args.output.is_dir():
        raise BadInput(f"--output {args.output} is a file: name a folder")
    if (args.output / "config.json").exists():
        raise BadInput(f"--output {args.output} holds a training run, whose curves.png a report would overwrite: "
                       "name another folder")
    if args.images and not args.images.is_dir():
        raise BadInput(f"--images {args.images} {'is not a folder' if args.images.exists() else 'does not exist'}: "
                       "name the folder of photos that p1_eval.py read")

    # After the arguments, so that --help and typing errors answer at once.
    import numpy as np

    from common.files import write_text, written_whole
    from compare import figures as figures_of
    from compare import tables
    from compare.claims import Comparisons, claims, sam_pairs, sweeps
    from compare.mistakes import PHOTOS_A_PAIR, confused_pairs, confusion, hard_photos
    from compare.runs import group_runs, read_runs
    from datasets.decode import load_image
    from plots import report as plots
    from plots.style import DPI

    runs, left_out = read_runs(args.runs)
    for line in left_out:
        note(f"left out: {line}")
    settings = group_runs(runs)
    by_images = {}
    for setting in settings:
        by_images.setdefault(setting.images, []).append(setting)
    slugs = tables.slugs([setting.name for setting in settings])

    # Numbers and words
    rows = [tables.table_row(setting) for setting in settings]
    comparisons = Comparisons(settings)
    swept = sweeps(settings)
    table = tables.markdown_table(*tables.settings_cells(rows)) + "\n" + tables.notes(settings)
    text = tables.Report("What the runs say")
    text.section("Settings", table)
    text.section("What may be claimed", tables.claims_section(claims(settings, comparisons)))
    text.section("Which differences exceed the noise", tables.noise_section(comparisons))
    text.section("Adam against SAM", tables.sam_section(sam_pairs(settings), comparisons))

    # Figures, by the names of their files
    figures = {}

    def figure(name, drawn, words):
        figures[name] = drawn
        text.figure(name, words)

    text.section("Curves")
    figure("curves.png", figures_of.curves(settings), figures_of.CURVES)

    if swept:
        text.section("Learning rates", tables.sweep_section(swept))
        figure("learning_rates.png", plots.draw_sweeps(
            [plots.Sweep(name, [setting.settings["lr"] for setting in sweep],
                         [setting.values("accuracy") for setting in sweep],
                         [setting.values("held_out_accuracy") for setting in sweep] if sweep[0].held_out else None)
             for name, sweep in zip(tables.sweep_names(swept), swept)]),
            "Mean over seeds as a line, their range as a bar.")

    text.section("Calibration")
    figure("calibration.png", figures_of.calibration(settings), figures_of.RELIABILITY)

    # Mistakes
    without_photos = {}
    set_slugs = tables.slugs([same[0].image_set for same in by_images.values()])
    for set_slug, (images, same) in zip(set_slugs, by_images.items()):
        text.section(f"Mistakes on {same[0].image_set}")
        folders = [folder for folder in (args.images, images.folder) if folder]

        def photos(mistakes):
            """Thumbnails of the photos with their texts; None where one of them is not there any more."""
            for folder in folders:
                try:
                    found = [load_image(folder / images.names[one.image]) for one in mistakes]
                except (OSError, BadImage):
                    continue
                for photo in found:
                    photo.thumbnail(THUMBNAIL)
                return [(np.asarray(photo), tables.mistake(images, one)) for photo, one in zip(found, mistakes)]

        def figure_of_photos(name, rows, columns, heading, words):
            """Leave it out where a photo is gone."""
            shown = [(row, photos(mistakes)) for row, mistakes in rows]
            if any(found is None for _, found in shown):
                without_photos[name] = folders
                text.paragraph(f"{name} is left out: its photos were not found.")
                return
            figure(name, plots.draw_photos(shown, columns, heading), words)

        hard = hard_photos(same)
        total, count = len(images.names), sum(len(setting.runs) for setting in same)
        name = "hard_photos.png" if len(by_images) == 1 else f"hard_photos_{set_slug}.png"
        text.paragraph(tables.hard_photos_section(images, hard, count, MOST_LISTED))
        if hard:
            drawn = hard[:MOST_HARD_PHOTOS]
            figure_of_photos(name, [("", drawn[start:start + 4]) for start in range(0, len(drawn), 4)], min(4, len(drawn)),
                             f"Wrong in every run: {len(hard)} of {total} photos",
                             f"Photos that all {count} runs get wrong, and what most of them take each for.")

        for setting in same:
            slug, pairs = slugs[settings.index(setting)], confused_pairs(setting)
            text.subsection(setting.name)
            seeds = f"mean of {len(setting.runs)} seeds" if len(setting.runs) > 1 else "one run"
            figure(f"confusion_{slug}.png", plots.draw_confusion(
                confusion(setting), images.class_names,
                f"{setting.name}: {100 * setting.mean('accuracy'):.1f} % of {total} right, {seeds}"),
                "Rows are true classes, columns what they were taken for; the numbers count images, mean over seeds.")
            text.paragraph(tables.confused_section(images, pairs))
            if pairs:
                figure_of_photos(
                    f"confused_{slug}.png",
                    [(tables.pair_in_words(images, *pair[:3]), pair[3]) for pair in pairs], PHOTOS_A_PAIR,
                    f"{setting.name}: the classes it confuses most",
                    "Up to three photos of each pair, with the surest of the seeds: true class, predicted one, probability.")
    if without_photos:
        searched = dict.fromkeys(str(folder) for folders in without_photos.values() for folder in folders)
        note(f"{', '.join(list(without_photos)[:3])}{' and others' * (len(without_photos) > 3)} are left out: not all "
               f"of their photos are in {' or '.join(searched)}; name their folder with --images")
    if left_out:
        text.section("Left out", tables.bullets(left_out))

    # Nothing was written until here.
    for name, drawn in figures.items():
        with written_whole(args.output / name) as temporary:
            drawn.savefig(temporary, dpi=DPI)
    write_text(args.output / "table.md", table)
    write_text(args.output / "table.csv", tables.settings_csv(rows))
    write_text(args.output / "per_class.csv", tables.per_class_csv(settings))
    write_text(args.output / "report.md", str(text))
    print(f"{len(runs)} runs of {len(settings)} settings: see {args.output / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
