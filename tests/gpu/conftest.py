"""These tests run on one CUDA GPU and need no photos and no network; elsewhere they are skipped."""

import os

import pytest
import torch

from datasets.shapes import write_dataset

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at a process's first product


def pytest_runtest_setup(item):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")


def pytest_terminal_summary(terminalreporter):
    """What the tests measured, with `record_property`."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [f"{name}: {value}" for report in reports if report.when == "call"
             for name, value in report.user_properties]
    if lines:
        terminalreporter.section(f"measured on {torch.cuda.get_device_name()}, torch {torch.__version__}")
        terminalreporter.write("\n".join([*lines, ""]))


@pytest.fixture
def device():
    return "cuda"


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def many_shapes(tmp_path_factory):
    """A drawn data set of 4 classes with 32 images each to train on: not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("shapes") / "set", ["cross", "heart", "ring", "star"],
                         train_per_class=32, val_per_class=0, seed=7)
