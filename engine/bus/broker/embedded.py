"""The embedded broker: starts `nats-server` from its wheel, waits until it answers, and restarts it when it dies.

A lock allows one broker a folder. On Linux the server ends with its parent, even a killed one. A server that was left
behind all the same is ended first, since two servers on one store would destroy it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import signal
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from engine.bus import worker_keys
from engine.bus.broker.server import (
    MAIN_USER,
    BrokerError,
    ListenAddress,
    build_configuration,
    find_free_port,
    find_server,
    find_server_pid,
)
from engine.process.child_life import bind_to_parent

__all__ = ["Broker", "BrokerError", "ListenAddress", "find_server"]

log = logging.getLogger(__name__)

READY_SECONDS = 30.0  # a large store takes a while to read
MAX_PAUSE = 5.0
# all that the server inherits: our environment holds secrets that it does not need
SERVER_VARIABLES = ("PATH", "TZ", "LD_LIBRARY_PATH", "GOMAXPROCS", "GOMEMLIMIT")
HEALTHY_SECONDS = 30.0  # after this uptime the next restart is immediate again


class Broker:
    """Async context manager; inside it `url` and `token` stay the same through every restart of the server.

    `workers`: the file of worker keys, read at every start. A restart reads the configuration file again, which
    `engine.bus.broker.worker_key_admin` keeps up to date.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        token: str = "",
        *,
        listen_address: ListenAddress | None = None,
        workers: Path | None = None,
    ) -> None:
        self.folder = folder
        self.workers = workers
        listen_address = listen_address or ListenAddress(port=port)
        self.listen_address = listen_address if listen_address.port else replace(listen_address, port=find_free_port())
        self.port = self.listen_address.port
        self.token = f"{MAIN_USER}:{token or secrets.token_hex(24)}"
        host = (
            f"[{self.listen_address.local_host}]"
            if ":" in self.listen_address.local_host
            else self.listen_address.local_host
        )
        self.url = f"{'tls' if self.listen_address.certificate else 'nats'}://{host}:{self.port}"
        self.restarts = 0
        self._server = Path()
        self._process: asyncio.subprocess.Process | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._lock: int | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Broker:
        try:
            await asyncio.to_thread(self._prepare)
            await self._end_orphan()
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._watch_task = asyncio.create_task(self._keep_running(), name="broker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def _prepare(self) -> None:
        """Make the private folder, take the lock, and write the configuration file (mode 600: it holds the token)."""
        self.folder = self.folder.resolve()
        self._server = find_server()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise BrokerError(f"Another broker is already running on {self.folder}.") from error
        self._lock = lock
        if self.workers is None:
            return self._configure([])
        try:
            with worker_keys.lock_file(self.workers):
                self._configure(worker_keys.read_keys(self.workers))
        except worker_keys.BadKey as error:
            raise BrokerError(str(error)) from error

    def _configure(self, workers: list[worker_keys.WorkerKey]) -> None:
        text = build_configuration(self.folder, self.listen_address, self.token.partition(":")[2], workers)
        worker_keys.replace_file(self.folder / "nats.conf", text.encode())

    async def _end_orphan(self) -> None:
        """End the server of a killed parent. We hold the lock, so it has no living parent."""
        pid = await asyncio.to_thread(find_server_pid, self.folder)
        if pid is None:
            return
        log.warning("broker: ending a server that was left behind (pid %d)", pid)
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(50):
                try:
                    os.kill(pid, signal_number)
                except ProcessLookupError:
                    return
                await asyncio.sleep(0.1)

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *bind_to_parent([str(self._server), "-c", str(self.folder / "nats.conf")]),
            env={name: os.environ[name] for name in SERVER_VARIABLES if name in os.environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # else Ctrl-C would end it before the workers hand back their jobs
        )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await self._is_ready():
                    if self._process.returncode is not None:
                        raise BrokerError(f"nats-server stopped at its start: {await self._read_last_error()}")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            last_error = await self._read_last_error()
            raise BrokerError(f"nats-server did not answer in {READY_SECONDS:.0f} s: {last_error}") from error

    async def _is_ready(self) -> bool:
        """Whether the server greets with INFO, which it does once its store is read."""
        try:
            reader, writer = await asyncio.open_connection(self.listen_address.local_host, self.port)
        except OSError:
            return False
        try:
            async with asyncio.timeout(1.0):
                return (await reader.read(5)).startswith(b"INFO")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()

    async def _read_last_error(self) -> str:
        try:
            text = await asyncio.to_thread((self.folder / "nats.log").read_text, errors="replace")
        except OSError:
            return "it left no log."
        lines = text.splitlines()
        return next(
            (line for line in reversed(lines) if "[FTL]" in line or "[ERR]" in line), lines[-1] if lines else ""
        )

    async def _keep_running(self) -> None:
        """Restart the server while the context lives; pauses grow from 0.1 s to 5 s."""
        pause = 0.1
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            started_at = loop.time()
            code = await self._process.wait()
            if loop.time() - started_at > HEALTHY_SECONDS:
                pause = 0.1
            log.error("broker: nats-server ended with %s, starting it again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)
            self.restarts += 1
            try:
                await self._start()
            except (BrokerError, OSError) as error:  # OSError: the program could not be executed
                log.error("broker: %s", error)
                await self._end_process()

    async def _end_process(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(5.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _stop(self) -> None:
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.gather(self._watch_task, return_exceptions=True)
        await self._end_process()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
