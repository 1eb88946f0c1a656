"""All comparisons in one table: what, ours, the other way, their ratio, its goal, whether met, the spread.

    REAL_DATA=DIR python -m benchmarks --json rows.json   # on the photos of DIR/pets
    python -m benchmarks evaluation captions              # some parts; without REAL_DATA on the demo's images
    python -m benchmarks page                             # the demo's page, once demo.sh has written it
    python -m benchmarks --device cuda                    # ViT-B/16 in bf16, and captions, on a GPU
    python -m benchmarks memory                           # what a GPU would need, another table

Each value is the median over turns, in each of which both sides are measured. Let nothing else run beside it.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors

PARTS = {"training": "training", "captions": "evaluation", "evaluation": "evaluation", "starting": "starting",
         "page": "starting"}  # of each part, which is a function there
ON_A_CPU, ON_A_GPU = list(PARTS)[:-1], list(PARTS)[:2]


def get_args_parser():
    parser = ArgumentParser(__doc__, prog="python -m benchmarks")
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART",
        help=f"{', '.join(PARTS)} (all but page; on a GPU {' and '.join(ON_A_GPU)})")
    add("--json", type=Path, metavar="FILE", help="where the rows go, too")
    add("--repeats", type=number(int, low=1), default=3, metavar="N", help="turns (%(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help=f"of {' and '.join(ON_A_GPU)} (%(default)s)")
    add("--small", action="store_true", help="tiny models, few photos: whether it works, not how fast it is")
    return parser


def measure(part, options):
    """Yield the rows of a part, which has a folder to work in."""
    with tempfile.TemporaryDirectory() as work:
        yield from getattr(module_of(part), part)(options, Path(work))


def module_of(part):
    return importlib.import_module(f"benchmarks.{PARTS[part]}")


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.parts == ["memory"]:
        from benchmarks.memory import table
        for row in table(args.small):
            print(row, flush=True)
        return 0
    if unknown := set(args.parts) - set(PARTS):  # argparse's choices refuse no part at all
        get_args_parser().error(f"no part {', '.join(unknown)}: choose from {', '.join(PARTS)}")

    from benchmarks.rows import HEADING, line, processor
    from common.files import write_text
    from engine.device import pick_device

    args.device = pick_device(args.device)
    parts = args.parts or (ON_A_CPU if args.device.type == "cpu" else ON_A_GPU)
    for part in {"starting", "page"}.intersection(parts):
        module_of(part).check(part, args)  # not after minutes
    print(processor(args.device))
    print(HEADING)
    rows = []
    for part in parts:
        for row in measure(part, args):
            print(line(row), flush=True)
            rows.append(vars(row))
            if args.json:
                write_text(args.json, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
