"""What a person waits for: scripts, the demo and its page in Chromium; the memory that many files take."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time

from benchmarks.evaluation import photo_folder, write_checkpoint
from benchmarks.rows import ROOT, compare, peak_mib, row, seconds
from common.errors import BadInput

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = ROOT / "runs" / "demo" / "index.html"
CANVASES = "#positions-map, #attention-photo, #attention-heads"
MOVES = 100
HAS_ALL_MAPS = "[...document.querySelectorAll('.readout')].every(each => each.textContent)"
SCRIPTS = [*ROOT.glob("p[12]_*.py"), ROOT / "report_page.py"]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "data", "runs", "figures", "downloads", "p1_data")
FLAGS = "--device", "cpu", "--workers", 1
TRAIN = *"p1_train.py --output run --arch test_vit --scratch --optimizer adam --epochs 1 --data".split(),


def demo_seconds(copy):
    """From the call of demo.sh, in a copy of the project with this .venv, to its first training step."""
    # there and not through the link, where an outdated environment would be cleared
    subprocess.check_call(["bash", "-c", ". common/setup.sh"], cwd=ROOT)
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    terminal, theirs = pty.openpty()  # the progress bar is for terminals
    termios.tcsetwinsize(terminal, (24, 200))  # wide enough for the loss
    started, output = time.perf_counter(), b""
    demo = subprocess.Popen(["bash", "demo.sh"], cwd=copy, stdout=theirs, stderr=theirs, process_group=0)
    os.close(theirs)  # if demo.sh ends early, reading raises OSError
    try:
        while b"loss=" not in output:
            output += os.read(terminal, 4096)
        return time.perf_counter() - started
    finally:
        os.killpg(demo.pid, signal.SIGKILL)
        demo.wait()
        os.close(terminal)


def check(part, options):
    """Raise BadInput where a part needs what is not there."""
    if part == "starting" and not options.small and not (ROOT / ".venv").exists():
        raise BadInput(f"there is no {ROOT / '.venv'}, with which demo.sh is timed: test.sh makes it")
    if part == "page" and not (CHROMIUM and PAGE.exists()):
        raise BadInput(f"there is no {PAGE if CHROMIUM else 'Chromium'}: install chromium, and run demo.sh")


def starting(options, work):
    few, many = (74, 148) if options.small else (200, 2_000)
    turns = range(options.repeats)
    yield row("--help of the slowest script", "s", "<=", 0.4, [
        max(seconds(subprocess.check_output, [sys.executable, script, "--help"]) for script in SCRIPTS)
        for _ in turns])
    for size in (few, many):
        photo_folder(work / str(size) / "train", size)
    evaluate = "p1_eval.py", "--checkpoint", write_checkpoint(work / "checkpoint.pt", "test_vit")
    for what, command, part in (("evaluating", evaluate, "train"), ("training on", TRAIN, "")):
        ours, other = ((peak_mib, *command, work / str(size) / part, *FLAGS) for size in (many, few))
        yield from compare(options.repeats, f"peak memory, {what} {many:,} photos", "MiB", ours,
                           (few, 1.05, *other), op="<=")
    if not options.small:  # it takes its time whatever the sizes
        yield row("demo.sh to the first training step", "s", "<=", 8, [
            demo_seconds(work / f"demo{i}") for i in turns])


def open_page(page):
    """Open the demo's page, until every map is drawn."""
    page.goto(PAGE.resolve().as_uri())
    while not page.evaluate(HAS_ALL_MAPS):
        time.sleep(0.005)


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


def page_rows(browser, repeats):
    pages = [browser.new_page(viewport={"width": 1280, "height": 900}) for _ in range(repeats)]
    yield row("opening the demo's page", "s", "<=", 1, [seconds(open_page, page) for page in pages])
    yield row("a move over its slowest map", "ms", "<=", 16, [
        max(move_milliseconds(page, canvas) for canvas in page.locator(CANVASES).all()) for page in pages])


def page(options, work):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield from page_rows(browser, options.repeats)
