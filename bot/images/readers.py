"""One process that reads pictures (`bot.images.confined`), from its start to its end. Knows processes and framing.

A Python with Pillow takes 0.2 s to start and a fork of one 2 ms: so it stays, and forks for each picture.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

from bot.images import confined
from bot.images.reading import Kind

ROOT = Path(__file__).parents[2]
STARTING = 30.0  # seconds until it is ready, on a machine that is busy
GRACE = 5.0  # seconds beyond a picture's own, after which it is the process itself that hangs
CODE = "import sys; sys.path.insert(0, {!r}); from bot.images.confined import main; main({!r}, {!r})"
NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Pythons find their own library by it; no secret lies there


class Gone(Exception):
    """The process ended, hangs, or says what it cannot have meant."""


class Reader:
    """After `Gone` or a cancellation it is good for nothing more; whoever has it calls `end`."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process, self._seconds, self._asking = process, seconds, False

    @classmethod
    async def start(cls, seconds: float, memory: int) -> Reader:
        """Ready to read. Without our environment: it shall know no secret. What keeps it from starting goes to our own
        standard error; a child that has a picture has none. Raises `Gone` or OSError."""
        code = CODE.format(str(ROOT), float(seconds), int(memory))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", code, stdin=PIPE, stdout=PIPE,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
            start_new_session=True,  # Ctrl-C is for us; and so it ends with its children
        )  # fmt: skip
        made = cls(process, seconds)
        try:
            async with asyncio.timeout(STARTING):
                if await made._source.readexactly(1) != confined.READY:
                    raise Gone("not ready")
        except (EOFError, TimeoutError) as error:
            await made.end()
            raise Gone("did not start") from error
        except BaseException:
            await made.end()
            raise
        return made

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def fit(self) -> bool:
        """Whether it may be asked."""
        return self._process.returncode is None and not self._asking

    @property
    def _source(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def ask(self, kind: Kind, content: bytes) -> tuple[int, bytes]:
        """How the child that read it ended (`confined.SAID` and so on), and what it said. Raises `Gone`."""
        sink, self._asking = self._process.stdin, True
        assert sink is not None
        try:
            async with asyncio.timeout(self._seconds + GRACE):
                sink.write(confined.ASKED.pack(kind, len(content)))
                sink.write(content)
                await sink.drain()
                end, length = confined.ANSWERED.unpack(await self._source.readexactly(confined.ANSWERED.size))
                if length > confined.MOST_SAID:
                    raise Gone("an answer out of bounds")
                said = await self._source.readexactly(length)
        except (OSError, EOFError, TimeoutError) as error:
            raise Gone("no answer") from error
        self._asking = False
        return end, said

    async def end(self) -> None:
        """Killed with its child and waited for, also while whoever asks is being cancelled."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.shield(self._process.wait())
