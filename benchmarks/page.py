"""How long the demo's page takes to open, and to answer a move of the mouse, in headless Chromium."""

import shutil
import time

from benchmarks.rows import ROOT, row
from common.errors import BadInput

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = ROOT / "runs" / "demo" / "index.html"
CANVASES = ("positions-map", "attention-photo", "attention-heads")
MOVES = 100
HAS_ALL_MAPS = "[...document.querySelectorAll('.readout')].every(each => each.textContent)"


def opened(browser, page_file):
    """A page in which every map is drawn, and the seconds that this took."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.perf_counter()
    page.goto(page_file.resolve().as_uri())
    while not page.evaluate(HAS_ALL_MAPS):
        time.sleep(0.005)
    return page, time.perf_counter() - started


def move_milliseconds(page, canvas):
    """What the main thread works for a move over a canvas, on average: script, layout and painting."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def task_seconds():
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    before = task_seconds()
    for i in range(MOVES):
        x, y = (i * 37 % 97 + 1) / 99, (i * 61 % 89 + 1) / 91
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    return (task_seconds() - before) / MOVES * 1000


def page_rows(browser, page_file, repeats):
    """The rows of a page: seconds to open it, and milliseconds for a move over each of its canvases."""
    pages, times = zip(*(opened(browser, page_file) for _ in range(repeats)))
    yield row(f"opening {page_file.name} from the disk", "s", "<=", 1, times)
    for name in CANVASES:
        if pages[0].locator(f"#{name}").count():
            times = [move_milliseconds(page, page.locator(f"#{name}")) for page in pages]
            yield row(f"a move over {name}", "ms", "<=", 16, times)


def rows(options):
    """The rows of the table. Raises BadInput where Chromium or the page is missing."""
    if not CHROMIUM:
        raise BadInput("there is no Chromium: install the package chromium")
    if not PAGE.exists():
        raise BadInput(f"{PAGE} does not exist: run demo.sh first")

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield from page_rows(browser, PAGE, options.repeats)
