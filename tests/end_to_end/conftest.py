"""One calibration for all processes of a test run, and bots on it: the tests compare bytes, not speeds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.process import DarkroomProcess
from shared.embedded_calibration import measure_once


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured once for all tests."""
    return measure_once(tmp_path_factory)


@pytest.fixture(scope="module")
def shared_bot(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DarkroomProcess]:
    """One running bot for all tests that don't kill it."""
    process = DarkroomProcess(tmp_path_factory.mktemp("house"))
    shutil.copy(calibration, process.data)
    process.start()
    try:
        process.wait_until_warm()
        yield process
    finally:
        process.stop()


@pytest.fixture
def own_bot(calibration: Path, tmp_path: Path) -> Iterator[DarkroomProcess]:
    """A bot for one test alone, on the same calibration."""
    process = DarkroomProcess(tmp_path / "data")
    process.data.mkdir()
    shutil.copy(calibration, process.data)
    yield process
    if process.process is not None:
        process.stop()
