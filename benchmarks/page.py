"""How long a page of report_page.py takes to open, and to answer when one points at something, in headless Chromium.

    python -m benchmarks.page runs/demo/index.html

A move is what the browser's main thread works between two places of the pointer, from Chromium's own trace: the script, the
layout and the painting.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import HEADING, Row
from common.cli import reports_errors
from common.errors import BadInput

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CANVASES = ("positions-map", "attention-photo", "attention-heads")
MOVES = 100
OPEN = "[...document.querySelectorAll('.readout')].every(each => each.textContent)"


def opened(browser, page_file):
    """A page in which every map is drawn, and the seconds that this took."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.perf_counter()
    page.goto(page_file.resolve().as_uri())
    while not page.evaluate(OPEN):
        time.sleep(0.005)
    return page, time.perf_counter() - started


def move_milliseconds(browser, page, canvas):
    """What the main thread works for a move over a canvas, on average, in milliseconds."""
    place = page.locator(f"#{canvas}")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    with tempfile.TemporaryDirectory() as work:
        trace = Path(work) / "trace.json"
        browser.start_tracing(page=page, path=trace)
        for i in range(MOVES):
            page.mouse.move(box["x"] + (i * 37 % 97 + 1) / 99 * box["width"], box["y"] + (i * 61 % 89 + 1) / 91 * box["height"])
        browser.stop_tracing()
        events = json.loads(trace.read_bytes())["traceEvents"]
    mains = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"
             and event["args"]["name"] == "CrRendererMain"}
    busy = sum(event.get("dur", 0) for event in events if event["name"] == "RunTask" and (event["pid"], event["tid"]) in mains)
    return busy / MOVES / 1000


def rows(browser, page_file, repeats):
    """The rows of a page: seconds to open it, and milliseconds for a move over each of its canvases."""
    pages, seconds = zip(*(opened(browser, page_file) for _ in range(repeats)))
    yield Row(f"opening {page_file.name} from the disk, seconds", list(seconds), "<=", 1)
    for canvas in CANVASES:
        if pages[0].locator(f"#{canvas}").count():
            times = [move_milliseconds(browser, page, canvas) for page in pages]
            yield Row(f"a move over {canvas}, milliseconds", times, "<=", 16)


def get_args_parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, metavar="FILE.html")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(%(default)s)")
    return parser


@reports_errors
def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not args.page.is_file():
        raise BadInput(f"{args.page} does not exist: name what report_page.py wrote")
    if not CHROMIUM:
        raise BadInput("there is no Chromium: install the package chromium")

    from playwright.sync_api import sync_playwright

    print(HEADING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for row in rows(browser, args.page, args.repeats):
            print(row, flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
