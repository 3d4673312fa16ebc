"""The engine as a child process: started, restarted with growing pauses when it dies, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
MAX_PAUSE = 30.0
HEALTHY_SECONDS = 60.0  # after living this long, the pause is the first one again
STOP_TIMEOUT = 3.0  # seconds for a worker to hand back its jobs
MAX_LOG_BYTES = 8 * 1024 * 1024


class EngineProcess:
    """An async context manager in which the child runs. `restart_count` counts its restarts."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_file: Path) -> None:
        self.command = tuple(command)
        self.env = dict(env)
        self.log_file = log_file
        self.restart_count = 0
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> EngineProcess:
        await self._start()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._stop()

    async def _start(self) -> None:
        output = await asyncio.to_thread(self._open_log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the child in order
            )
        finally:
            os.close(output)

    def _open_log(self) -> int:
        """Open the log to append to it; first rename one that is too large."""
        if self.log_file.exists() and self.log_file.stat().st_size > MAX_LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".old.log"))
        return os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _last_log_line(self) -> str:
        """Return the end of the log's last line; the file has the rest."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError as error:
            return f"its log can't be read: {error.strerror}"
        return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "no output")

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            start_time = loop.time()
            code = await self._process.wait()
            if loop.time() - start_time > HEALTHY_SECONDS:
                pause = FIRST_PAUSE
            self.restart_count += 1
            reason = f"by signal {-code}"
            if code >= 0:
                reason = f"with {code} ({await asyncio.to_thread(self._last_log_line)})"
            log.error("the engine ended %s, starting it again in %.1f s", reason, pause)
            pause = await self._restart_after(pause)

    async def _restart_after(self, pause: float) -> float:
        """Start it after `pause`; try again while the machine lacks files, memory or disk. Return the next pause."""
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)
            try:
                await self._start()
            except OSError as error:
                log.error("the engine could not be started: %s; trying again in %.1f s", error, pause)
            else:
                return pause

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            log.warning("the engine did not stop in %.0f s and was ended", STOP_TIMEOUT)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
