"""Forks the decoder processes of a test's bots from one that has Pillow loaded: a new one takes as long as its broker.

A fork runs the same `sandbox_worker.main`. `tests/bot/pictures/test_upload_decoder.py` and the tests of real bots start
real processes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from bot.pictures.uploads import sandbox_worker, upload_decoder
from bot.pictures.uploads.upload_decoder import DecoderProcess

# what a fork is told, and what it answers
LIMITS = struct.Struct(">dQ")
PID = struct.Struct(">I")
SERVER = """
import os, signal, socket, struct, sys
sys.path.insert(0, {root!r})
from bot.pictures.uploads import image_decoding, sandbox_worker
image_decoding.prepare_pillow()
image_decoding.prepare_pillow = lambda: None
sandbox_worker.die_with_parent({parent})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
listener, is_fork = socket.socket(fileno={listener}), False
while not is_fork:
    connection, _ = listener.accept()
    is_fork = os.fork() == 0
    if not is_fork:
        connection.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
listener.close()
os.setsid()
seconds, memory = struct.unpack({limits!r}, connection.recv({size}, socket.MSG_WAITALL))
connection.sendall(struct.pack({pid!r}, os.getpid()))
for stream in (0, 1):
    os.dup2(connection.fileno(), stream)
connection.close()
sandbox_worker.main(seconds, memory)
"""


class DecoderForks:
    """`start` does what `DecoderProcess.start` does, with a fork of the server at `address`."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def start(self, timeout: float, memory: int) -> DecoderProcess:
        reader, writer = await asyncio.open_unix_connection(self._address)
        try:
            writer.write(LIMITS.pack(timeout, memory))
            (pid,) = PID.unpack(await reader.readexactly(PID.size))
            assert await reader.readexactly(1) == sandbox_worker.READY
        except BaseException:
            writer.close()
            raise
        return DecoderProcess(cast(Any, _ForkedProcess(pid, reader, writer)), timeout)


class _ForkedProcess:
    """What `DecoderProcess` uses of an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.stdout = reader
        self.stdin = writer

    @property
    def returncode(self) -> int | None:
        return -9 if self.stdout.at_eof() else None

    async def wait(self) -> None:
        with suppress(OSError):
            await self.stdin.wait_closed()


@contextmanager
def serve_decoders() -> Iterator[DecoderForks]:
    """Starts the server, and ends it with the block."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(folder) / "socket")
        listener.bind(address)
        listener.listen()
        code = SERVER.format(
            root=str(upload_decoder.ROOT),
            parent=os.getpid(),
            listener=listener.fileno(),
            limits=LIMITS.format,
            size=LIMITS.size,
            pid=PID.format,
        )
        environment = {name: os.environ[name] for name in upload_decoder.PASSED_VARIABLES if name in os.environ}
        command = [sys.executable, "-I", "-c", code]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], env=environment
        ) as server:
            yield DecoderForks(address)
            server.kill()
