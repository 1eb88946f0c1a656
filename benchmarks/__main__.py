"""All comparisons, in one table: what, ours, the other way, their ratio, its goal, whether it is met, and the spread.

    REAL_DATA=DIR python -m benchmarks --json rows.json     # on the photos of DIR/pets
    python -m benchmarks captions figures                   # some parts; without REAL_DATA on drawn photos
    python -m benchmarks --device cuda                      # what a GPU makes of ViT-B/16, and of captions

Each value is the median over turns, in each of which both sides are measured. Nothing else should run beside it.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from common.cli import ArgumentParser, number, reports_errors

PARTS = {"training": "training", "sam": "sam_step", "evaluation": "evaluation", "captions": "caption_decoding",
         "figures": "figures", "starting": "starting", "vit-base": "vit_base"}
ON_A_GPU = ["vit-base", "captions"]


def get_args_parser():
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART",
        help=f"{', '.join(PARTS)} (on a CPU all but vit-base, on a GPU {' and '.join(ON_A_GPU)})")
    add("--json", type=Path, metavar="FILE", help="where the rows go, too")
    add("--repeats", type=number(int, low=1), default=3, metavar="N", help="turns (%(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help=f"of {' and '.join(ON_A_GPU)} (%(default)s)")
    add("--small", action="store_true", help="tiny models and few photos: to see that it works, not how fast it is")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if unknown := set(args.parts) - PARTS.keys():
        get_args_parser().error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    args.arch = "test_vit" if args.small else "vit_tiny_patch16_224"
    args.steps, args.sam_steps, args.photos = (2, 3, 4) if args.small else (10, 30, 100)

    from benchmarks.rows import HEADING
    from engine.device import pick_device

    pick_device(args.device)
    usual = ON_A_GPU if args.device == "cuda" else [part for part in PARTS if part != "vit-base"]
    print(HEADING)
    found = []
    for part in args.parts or usual:
        for row in importlib.import_module(f"benchmarks.{PARTS[part]}").rows(args):
            print(row, flush=True)
            found.append(row.as_json())
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
