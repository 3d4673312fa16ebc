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
    """One running bot for all tests: a start takes ten seconds of the processor."""
    process = DarkroomProcess(tmp_path_factory.mktemp("house"))
    shutil.copy(calibration, process.data)
    process.start()
    try:
        process.wait_until_warm()
        yield process
    finally:
        process.stop()


@pytest.fixture
def warm_bot(shared_bot: DarkroomProcess) -> DarkroomProcess:
    """That bot for the tests that kill it, running and warm again."""
    assert shared_bot.process is not None
    if shared_bot.process.poll() is not None:
        shared_bot.start()
    shared_bot.wait_until_warm()
    return shared_bot
