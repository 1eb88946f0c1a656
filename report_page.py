"""One self-contained page to look inside by pointing, of what the other scripts wrote: it needs no network and no server.

    python report_page.py --output page/index.html --runs runs/tiny_adam runs/tiny_sam --posembed figures/posembed.npz \\
        --attention figures --captions captions
    python report_page.py --output attention.html --attention figures

Each section stands where its flag is given:

    --runs        output folders of p1_train.py, evaluated by p1_eval.py: settings, curves, calibration, confusions
    --posembed    FILE.npz of p1_viz_posembed.py: the similarity of a patch to all others
    --attention   output folders of p1_viz_attn.py --all: every layer, head and query; with --masks the share on the object
    --captions    output folders of p2_caption_viz.py --all: the map of each token or word, in every layer
    --pointing    FILE.json of p2_eval.py: whether the maps of drawn scenes lie on what the words name

The photos are part of the page. Nothing is computed by a model here.
"""

import argparse
import sys
from pathlib import Path

from common.cli import ArgumentParser, note, reports_errors
from common.errors import BadInput

TITLE = "Look inside"
HEAVY = 60e6  # bytes, from which on a browser takes seconds to open the page


def get_args_parser():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.html", help="the page")
    add("--runs", type=Path, nargs="+", action="extend", default=[], metavar="DIR", help="output folders of p1_train.py")
    add("--posembed", type=Path, metavar="FILE.npz", help="of p1_viz_posembed.py")
    add("--attention", type=Path, nargs="+", action="extend", default=[], metavar="DIR", help="of p1_viz_attn.py --all")
    add("--captions", type=Path, nargs="+", action="extend", default=[], metavar="DIR", help="of p2_caption_viz.py --all")
    add("--pointing", type=Path, metavar="FILE.json", help="of p2_eval.py, for the captions")
    add("--images", type=Path, nargs="+", action="extend", default=[], metavar="DIR",
        help="where the photos are, if they are no longer where the other scripts read them")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not (args.runs or args.posembed or args.attention or args.captions):
        raise BadInput("nothing to show: name --runs, --posembed, --attention or --captions")
    if args.pointing and not args.captions:
        raise BadInput("--pointing belongs to --captions: name those, too")
    if args.output.suffix != ".html":
        raise BadInput(f"--output {args.output}: its name must end with .html")
    if args.pointing and not args.pointing.is_file():
        raise BadInput(f"--pointing {args.pointing} does not exist: name what p2_eval.py --json wrote")
    for folder in [*args.attention, *args.captions, *args.images]:
        if not folder.is_dir():
            raise BadInput(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}: name a folder")

    # After the arguments, so that --help and typing errors answer at once.
    from common.files import refuse_unwritable, write_text
    from page import attention, captions, positions, results
    from page.render import as_html
    from page.section import Photos

    refuse_unwritable(args.output)
    photos, sections = Photos(args.images), []
    if args.runs:
        section, left_out = results.section(args.runs, photos)
        sections.append(section)
        for line in left_out:
            note(f"left out: {line}")
    if args.posembed:
        sections.append(positions.section(args.posembed))
    if args.attention:
        sections.append(attention.section(args.attention, photos))
    if args.captions:
        sections.append(captions.section(args.captions, photos, args.pointing))

    html = as_html(TITLE, sections)
    write_text(args.output, html)
    size = args.output.stat().st_size
    if size > HEAVY:
        note(f"the page has {size / 1e6:.0f} MB and will take seconds to open: name fewer photos")
    print(f"{args.output}: {size / 1e6:.1f} MB, open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
