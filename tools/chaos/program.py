"""One program of the installation, restarted whenever it ends, as a service manager does.

Knows a command line, signals and a log file, not what the program does.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tools.chaos.timeline import Timeline

ROOT = Path(__file__).parents[2]
RESTART_DELAY = 0.3  # seconds before a program that ended by itself restarts
EXIT_TIMEOUT = 20.0  # seconds for an orderly end


class Program:
    """`keep_running` runs it for as long as the campaign lasts."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, timeline: Timeline, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.env = env
        self.timeline = timeline
        self.restart_delay = RESTART_DELAY
        self.death_count = 0
        self.start_count = 0
        self.started_at = 0.0  # the last start, on the monotonic clock
        self.process: asyncio.subprocess.Process | None = None
        self._end_is_expected = False
        self._has_ended = False

    async def keep_running(self) -> None:
        """Starts it again and again until `stop`."""
        while not self._has_ended:
            await self._start()
            assert self.process
            if self._has_ended:  # `stop` came during the start
                self.process.kill()
            code = await self.process.wait()
            if not (self._end_is_expected or self._has_ended):
                self.death_count += 1
                self.timeline.note("ended by itself", is_printed=True, who=self.name, code=code)
            pause = self.restart_delay
            self.restart_delay = RESTART_DELAY
            self._end_is_expected = False
            await asyncio.sleep(pause)

    async def _start(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, cwd=ROOT, env=self.env, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.start_count = self.start_count + 1
        self.started_at = time.monotonic()
        self.timeline.note("started", who=self.name, pid=self.process.pid)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, signal_number: signal.Signals, *, restart_delay: float = RESTART_DELAY) -> None:
        """Sends a signal. A program that ends by it restarts after `restart_delay` seconds."""
        if not self.is_running:
            return
        assert self.process
        if signal_number in (signal.SIGKILL, signal.SIGTERM):
            self._end_is_expected = True
            self.restart_delay = restart_delay
        with suppress(ProcessLookupError):
            self.process.send_signal(signal_number)

    def signal_tree(self, signal_number: signal.Signals) -> None:
        """Sends a signal to the program and all its child processes."""
        if self.is_running and self.process:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.send_signal(signal_number)
            self.signal(signal_number)

    async def wait_for_exit(self, seconds: float = EXIT_TIMEOUT) -> bool:
        """Waits for its end; False if it takes longer than `seconds`."""
        assert self.process
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.process.wait()), seconds)
            return True
        return False

    async def stop(self) -> None:
        """Ends it for good, in order if possible."""
        self._has_ended = True
        if self.is_running:
            self.signal_tree(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            if not await self.wait_for_exit():
                self.timeline.note("would not end", is_printed=True, who=self.name)
                self.signal_tree(signal.SIGKILL)
