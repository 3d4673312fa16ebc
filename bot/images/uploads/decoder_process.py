"""Client of one decoder process (`bot.images.uploads.sandbox_worker`): start, requests, end.

A Python with Pillow takes 0.2 s to start, a fork of it 2 ms: so the process stays and forks for each upload.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

from bot.images.uploads import sandbox_worker
from bot.images.uploads.image_decoding import UploadKind

ROOT = Path(__file__).parents[3]
START_TIMEOUT = 30.0  # seconds until it is ready, on a busy machine
GRACE_SECONDS = 5.0  # seconds beyond an upload's limit after which we consider the process hung
START_CODE = (
    "import sys; sys.path.insert(0, {!r}); from bot.images.uploads.sandbox_worker import main; main({!r}, {!r})"
)
PASSED_VARIABLES = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)  # some Pythons find their own library by these; they hold no secret


class DecoderGone(Exception):
    """The process ended, hangs, or sent an invalid answer."""


class DecoderProcess:
    """Unusable after `DecoderGone` or a cancellation; its owner calls `kill`."""

    def __init__(self, process: Process, timeout: float) -> None:
        self._process = process
        self._timeout = timeout
        self._busy = False

    @classmethod
    async def start(cls, timeout: float, memory: int) -> DecoderProcess:
        """Start a process and wait until it is ready. Raises `DecoderGone` or OSError.

        It gets no environment, so it knows no secret. Errors of its start go to our standard error; a child with an
        upload has no standard error.
        """
        code = START_CODE.format(str(ROOT), float(timeout), int(memory))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            code,
            stdin=PIPE,
            stdout=PIPE,
            env={name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the bot; and `kill` ends the group, children included
        )
        decoder = cls(process, timeout)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                if await decoder._stdout.readexactly(1) != sandbox_worker.READY:
                    raise DecoderGone("not ready")
        except (EOFError, TimeoutError) as error:
            await decoder.kill()
            raise DecoderGone("did not start") from error
        except BaseException:
            await decoder.kill()
            raise
        return decoder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it can take a request."""
        return self._process.returncode is None and not self._busy

    @property
    def _stdout(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def decode(self, kind: UploadKind, content: bytes) -> tuple[int, bytes]:
        """Decode a file. Return how the child ended (`sandbox_worker.OUTPUT` and so on), and its output. Raises
        `DecoderGone`.
        """
        stdin = self._process.stdin
        self._busy = True
        assert stdin is not None
        try:
            async with asyncio.timeout(self._timeout + GRACE_SECONDS):
                stdin.write(sandbox_worker.REQUEST_HEADER.pack(kind, len(content)))
                stdin.write(content)
                await stdin.drain()
                exit_kind, length = sandbox_worker.ANSWER_HEADER.unpack(
                    await self._stdout.readexactly(sandbox_worker.ANSWER_HEADER.size)
                )
                if length > sandbox_worker.MAX_OUTPUT_BYTES:
                    raise DecoderGone("an answer out of bounds")
                output = await self._stdout.readexactly(length)
        except (OSError, EOFError, TimeoutError) as error:
            raise DecoderGone("no answer") from error
        self._busy = False
        return exit_kind, output

    async def kill(self) -> None:
        """Kill the process with its child and wait for it, even while the caller is being cancelled."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.shield(self._process.wait())
