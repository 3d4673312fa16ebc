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

from chaos.timeline import Timeline

ROOT = Path(__file__).parents[2]
PAUSE = 0.3  # seconds before a program that ended by itself restarts
PATIENCE = 20.0  # seconds for an orderly end


class Program:
    """`keep` runs it for as long as the campaign lasts."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, timeline: Timeline, env: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        self.name, self.command, self.log, self.env = name, command, log, env
        self.timeline, self.pause, self.died, self.starts = timeline, PAUSE, 0, 0
        self.began = 0.0  # the last start, on the monotonic clock
        self.process: asyncio.subprocess.Process | None = None
        self._end_is_expected, self._has_ended = False, False

    async def keep(self) -> None:
        """Starts it again and again until `end`."""
        while not self._has_ended:
            await self._start()
            assert self.process
            if self._has_ended:  # `end` came during the start
                self.process.kill()
            code = await self.process.wait()
            if not (self._end_is_expected or self._has_ended):
                self.died += 1
                self.timeline.note("ended by itself", aloud=True, who=self.name, code=code)
            pause, self.pause, self._end_is_expected = self.pause, PAUSE, False
            await asyncio.sleep(pause)

    async def _start(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, cwd=ROOT, env=self.env, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.starts, self.began = self.starts + 1, time.monotonic()
        self.timeline.note("started", who=self.name, pid=self.process.pid)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, sign: signal.Signals, *, back: float = PAUSE) -> None:
        """Sends a signal. A program that ends by it restarts after `back` seconds."""
        if not self.running:
            return
        assert self.process
        if sign in (signal.SIGKILL, signal.SIGTERM):
            self._end_is_expected, self.pause = True, back
        with suppress(ProcessLookupError):
            self.process.send_signal(sign)

    def family(self, sign: signal.Signals) -> None:
        """Sends a signal to the program and all its child processes."""
        if self.running and self.process:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.send_signal(sign)
            self.signal(sign)

    async def gone(self, seconds: float = PATIENCE) -> bool:
        """Whether it ended within that time."""
        assert self.process
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.process.wait()), seconds)
            return True
        return False

    async def end(self) -> None:
        """Ends it for good, in order if possible."""
        self._has_ended = True
        if self.running:
            self.family(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            if not await self.gone():
                self.timeline.note("would not end", aloud=True, who=self.name)
                self.family(signal.SIGKILL)
