"""One self-contained page to look inside, of what the other scripts wrote: it needs no network and no server.

    python report_page.py --output page/index.html --runs runs/tiny_adam runs/tiny_sam \\
        --posembed figures/posembed.npz --attention figures --captions captions

Each section stands where its flag is given. The photos are part of the page. No model is run.
"""

import sys
from pathlib import Path

from common.cli import ArgumentParser, note, reports_errors
from common.errors import BadInput
from common.files import refuse_missing, refuse_unwritable, write_text

MOST = 15  # megabytes, in which photos' attention is shown in full; a few tens open without a pause
HEAVY = 60  # megabytes, from which on a browser takes seconds to open the page


def get_args_parser():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    folders = {"type": Path, "nargs": "+", "action": "extend", "default": [], "metavar": "DIR"}
    add("--output", type=Path, required=True, metavar="FILE.html", help="the page")
    add("--title", default="Look inside", help="of the page (%(default)s)")
    add("--runs", **folders, help="output folders of p1_train.py, evaluated by p1_eval.py")
    add("--posembed", type=Path, metavar="FILE.npz", help="of p1_viz_posembed.py")
    add("--attention", **folders,
        help="output folders of p1_viz_attn.py --all, best with --masks; your own photos first")
    add("--captions", **folders, help="output folders of p2_caption_viz.py --all")
    add("--pointing-game", type=Path, metavar="FILE.json", help="of p2_eval.py --json, for the captions")
    add("--images", **folders, help="where the photos are, if those scripts read them elsewhere")
    return parser


def refuse(args):
    """Raise BadInput for arguments that make no page."""
    if not (args.runs or args.posembed or args.attention or args.captions):
        raise BadInput("nothing to show: name --runs, --posembed, --attention or --captions")
    if args.pointing_game and not args.captions:
        raise BadInput("--pointing-game belongs to --captions: name those, too")
    if args.output.suffix != ".html":
        raise BadInput(f"--output {args.output}: its name must end with .html")
    for file, script in ((args.posembed, "p1_viz_posembed.py"), (args.pointing_game, "p2_eval.py --json")):
        if file:
            refuse_missing(file, f"what {script} wrote")
    for folder in [*args.attention, *args.captions, *args.images]:
        refuse_missing(folder, "a folder", folder=True)


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    refuse(args)

    # After the arguments, so that --help and typing errors answer at once.
    from compare.runs import Study
    from page import attention, captions, positions, results
    from page.render import as_html

    refuse_unwritable(args.output)
    sections = []
    if args.runs:
        study = Study(args.runs)
        for line in study.left_out:
            note(f"left out: {line}")
        sections.append(results.section(study, args.images))
    if args.posembed:
        sections.append(positions.section(args.posembed))
    if args.captions:
        sections.append(captions.section(args.captions, args.images, args.pointing_game))
    if args.attention:
        room = MOST * 10**6 - len(as_html(args.title, sections))
        sections.insert(len(sections) - bool(args.captions),
                        attention.section(args.attention, args.images, room))
    write_text(args.output, as_html(args.title, sections))

    megabytes = args.output.stat().st_size / 1e6
    if megabytes > HEAVY:
        note(f"the page has {megabytes:.0f} MB and will take seconds to open: name fewer photos")
    print(f"{args.output}: {megabytes:.1f} MB, open it in a browser")


if __name__ == "__main__":
    sys.exit(main())
