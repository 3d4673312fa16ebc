"""The engine process: it lives as long as the bot, restarts when it dies, and shuts down in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.cli.up import engine_process
from bot.cli.up.engine_process import EngineProcess

POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('handed over', flush=True), sys.exit(0)))
print('at work', flush=True)
while True: time.sleep(0.05)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('at work', flush=True)
while True: time.sleep(0.05)
"""


def _engine_process(code: str, log: Path) -> EngineProcess:
    return EngineProcess([sys.executable, "-c", code], os.environ, log)


async def _wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def _log_contains(log: Path, words: str) -> Callable[[], bool]:
    return lambda: log.exists() and words in log.read_text()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.asyncio
async def test_the_engine_stops_on_a_signal_and_hands_back_its_jobs(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with _engine_process(POLITE, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        pid = harness.pid
    assert pid is not None
    assert _is_gone(pid)
    assert "handed over" in log.read_text()


@pytest.mark.asyncio
async def test_a_killed_engine_restarts(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with _engine_process(POLITE, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        first = harness.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await _wait_until(lambda: log.read_text().count("at work") == 2)
        assert harness.restart_count == 1
        assert harness.pid != first


@pytest.mark.asyncio
async def test_an_engine_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "STOP_TIMEOUT", 0.3)
    log = tmp_path / "engine.log"
    async with _engine_process(STUBBORN, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        pid = harness.pid
    assert pid is not None
    assert _is_gone(pid)


@pytest.mark.asyncio
async def test_pauses_grow_while_the_engine_cannot_start(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with _engine_process("print('no weights'); raise SystemExit(1)", log) as harness:
        await _wait_until(lambda: harness.restart_count >= 3)
        start_count = log.read_text().count("no weights")
    assert start_count <= 3  # 0.2 s, 0.4 s, 0.8 s: no busy loop


@pytest.mark.asyncio
async def test_ctrl_c_does_not_reach_the_engine(tmp_path: Path) -> None:
    """The engine has a session of its own: a terminal's signals go to the bot, which then stops the engine."""
    log = tmp_path / "engine.log"
    async with _engine_process(POLITE, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        assert harness.pid is not None
        assert os.getsid(harness.pid) != os.getsid(0)


@pytest.mark.asyncio
async def test_a_log_that_is_too_large_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "MAX_LOG_BYTES", 10)
    log = tmp_path / "engine.log"
    log.write_text("a line of yesterday")
    async with _engine_process(POLITE, log):
        await _wait_until(_log_contains(log, "at work"))
    assert "yesterday" not in log.read_text()
    assert "yesterday" in (tmp_path / "engine.old.log").read_text()


@pytest.mark.asyncio
async def test_the_engine_restarts_without_its_log(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with _engine_process(POLITE, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        log.unlink()
        assert harness.pid is not None
        os.kill(harness.pid, signal.SIGKILL)
        await _wait_until(_log_contains(log, "at work"))


@pytest.mark.asyncio
async def test_a_start_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "engine.log"
    async with _engine_process(POLITE, log) as harness:
        await _wait_until(_log_contains(log, "at work"))
        folder.rename(tmp_path / "away")
        assert harness.pid is not None
        os.kill(harness.pid, signal.SIGKILL)
        await _wait_until(lambda: "could not be started" in caplog.text)
        folder.mkdir()
        await _wait_until(_log_contains(log, "at work"))
        assert harness.restart_count == 1
