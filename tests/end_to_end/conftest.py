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


@pytest.fixture(scope="module")
def bot_to_kill(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DarkroomProcess]:
    """A bot for the tests that kill it, on the same calibration."""
    process = DarkroomProcess(tmp_path_factory.mktemp("house-to-kill"))
    shutil.copy(calibration, process.data)
    yield process
    if process.process is not None:
        process.stop()


@pytest.fixture
def warm_bot(bot_to_kill: DarkroomProcess) -> DarkroomProcess:
    """That bot, running and warm. It starts where no bot runs: a start takes seconds of the processor."""
    if bot_to_kill.process is None or bot_to_kill.process.poll() is not None:
        bot_to_kill.start()
    bot_to_kill.wait_until_warm()
    return bot_to_kill
