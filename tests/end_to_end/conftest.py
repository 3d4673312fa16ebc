"""One calibration for all processes of a test run, and bots on it: the tests compare bytes, not speeds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.process import Up
from shared.embedded_calibration import measure_once


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured once for all tests."""
    return measure_once(tmp_path_factory)


@pytest.fixture(scope="module")
def calibrated(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One running bot for all tests that don't kill it."""
    up = Up(tmp_path_factory.mktemp("house"))
    shutil.copy(calibration, up.data)
    up.start()
    try:
        up.warm()
        yield up
    finally:
        up.stop()


@pytest.fixture
def own(calibration: Path, tmp_path: Path) -> Iterator[Up]:
    """A bot for one test alone, on the same calibration."""
    up = Up(tmp_path / "data")
    up.data.mkdir()
    shutil.copy(calibration, up.data)
    yield up
    if up.process is not None:
        up.stop()
