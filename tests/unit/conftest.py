from contextlib import nullcontext

import pytest


@pytest.fixture
def real_curves():
    """Have curves drawn, which tests of the loop do without: they take longer than all the rest."""


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    if "real_curves" not in request.fixturenames:
        monkeypatch.setattr("engine.loop.drawing_curves", lambda history, path: nullcontext())


@pytest.fixture
def device():
    """Where a test computes that tests/gpu runs as well."""
    return "cpu"
