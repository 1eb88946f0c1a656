"""Whatever is imported here, the process that only hands out the tests waits for: torch is not."""

import os
import shutil
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--require-real-data", action="store_true",
                     help="fail if a test on real data was skipped")
    parser.addoption("--require-browser", action="store_true", help="fail if a test in a browser was skipped")


def pytest_runtest_setup(item):
    if item.get_closest_marker("real_data") and "REAL_DATA" not in os.environ:
        pytest.skip("REAL_DATA is not set")
    if item.get_closest_marker("browser"):
        from benchmarks.starting import CHROMIUM

        if not CHROMIUM:
            pytest.skip("there is no Chromium: install the package chromium")


skipped_reports = []


def pytest_runtest_logreport(report):
    if report.skipped:
        skipped_reports.append(report)  # under xdist those of all workers come to the first process


def pytest_sessionfinish(session):
    for marker, option in (("real_data", "--require-real-data"), ("browser", "--require-browser")):
        skipped = [report.nodeid for report in skipped_reports if marker in report.keywords]
        if skipped and session.config.getoption(option):
            print(f"\n{len(skipped)} tests were skipped that {option} wants, such as {skipped[0]}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def real_data():
    folder = Path(os.environ["REAL_DATA"])
    assert (folder / "pets" / "train").is_dir(), f"REAL_DATA={folder} does not hold the real photos"
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A drawn data set of 4 classes, each 8 images to train on and 4 to validate on: not to be changed."""
    from datasets.shapes import write_dataset

    return write_dataset(tmp_path_factory.mktemp("shapes") / "set", ["cross", "heart", "ring", "star"],
                         train_per_class=8, val_per_class=4, seed=7)


@pytest.fixture(scope="session")
def run(shapes, tmp_path_factory):
    """The output folder of a short training run on `shapes`; tests must not change it."""
    from tests.helpers.training import train

    output = tmp_path_factory.mktemp("run") / "output"
    assert train(shapes, output, "--epochs", 2, "--sam") == 0
    return output


@pytest.fixture(scope="session")
def best(run, tmp_path_factory):
    """Its best.pt by itself: beside one in a run folder p1_eval.py writes."""
    return shutil.copy(run / "best.pt", tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture(scope="session")
def captioners(tmp_path_factory):
    """A folder with scenes, a random captioner in both formats, and a vocabulary of another size."""
    import torch

    from datasets import scenes
    from models import catr

    folder = tmp_path_factory.mktemp("captioners")
    scenes.write_scenes(folder / "coco", 3, 2)
    config = catr.small_config(len(scenes.VOCABULARY))
    weights = catr.CATR(config).state_dict()
    torch.save({**catr.checkpoint_fields(config, scenes.VOCABULARY), "settings": {}, "state_dict": weights},
               folder / "captioner.pt")
    torch.save({"model": weights}, folder / "catr.pth")
    (folder / "short.txt").write_text("\n".join(scenes.VOCABULARY[:9]) + "\n")
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved during a test, which are drawn in this process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from plots import drawing

    figures, save, draw = [], Figure.savefig, FigureCanvasAgg.draw

    def noted(figure):
        if figure not in figures:
            figures.append(figure)

    monkeypatch.setattr(Figure, "savefig",
                        lambda self, *args, **kwargs: (noted(self), save(self, *args, **kwargs)))
    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda self: (noted(self.figure), draw(self)))
    monkeypatch.setattr(drawing.Drawing, "draw", lambda self, path, function, *args, **kwargs:
                        drawing.draw_whole(path, function, args, kwargs))
    return figures
