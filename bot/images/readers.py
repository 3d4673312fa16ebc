"""Client of one decoder process (`bot.images.confined`): start, requests, end.

A Python with Pillow takes 0.2 s to start, a fork of it 2 ms: so the process stays, and forks for each upload.
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
STARTING = 30.0  # seconds until it is ready, on a busy machine
GRACE = 5.0  # seconds beyond an upload's limit, after which the process itself hangs
CODE = "import sys; sys.path.insert(0, {!r}); from bot.images.confined import main; main({!r}, {!r})"
NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Pythons find their own library by these; they hold no secret


class Gone(Exception):
    """The process ended, hangs, or sent an invalid answer."""


class Reader:
    """Unusable after `Gone` or a cancellation; its owner calls `end`."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process, self._seconds, self._asking = process, seconds, False

    @classmethod
    async def start(cls, seconds: float, memory: int) -> Reader:
        """Start a process and wait until it is ready. Raises `Gone` or OSError.

        It gets no environment, so it knows no secret. Errors of its start go to our standard error; a child that has an
        upload has none.
        """
        code = CODE.format(str(ROOT), float(seconds), int(memory))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", code, stdin=PIPE, stdout=PIPE,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the bot; and `end` kills the group, children included
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
        """Whether it can take a request."""
        return self._process.returncode is None and not self._asking

    @property
    def _source(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def ask(self, kind: Kind, content: bytes) -> tuple[int, bytes]:
        """Decode a file. Return how the child ended (`confined.SAID` and so on), and its output. Raises `Gone`."""
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
        """Kill the process with its child and wait for it, even while the caller is being cancelled."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.shield(self._process.wait())
