"""The lock that admits one `darkroom up` to a data folder, and the file with its address. The lock ends with the
process.

Closes a folder of ours that other users of the machine could read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.domain.errors import UserError


@dataclass(frozen=True)
class RunningInstance:
    """Address (`http://127.0.0.1:PORT`) and process id of a running bot."""

    url: str
    pid: int


def find_instance(data: Path) -> RunningInstance | None:
    """Return what `announce_instance` left in this folder, or None. It may be stale: ask its /healthz before you trust
    it.
    """
    try:
        content = json.loads((data / "running.json").read_text())
        return RunningInstance(url=str(content["url"]), pid=int(content["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def announce_instance(data: Path, instance: RunningInstance) -> None:
    """Write `running.json` atomically, readable by its owner only."""
    temp_path = data / f"running.{os.getpid()}.json"
    with os.fdopen(os.open(temp_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(instance), file)
    temp_path.replace(data / "running.json")


def withdraw_instance(data: Path) -> None:
    (data / "running.json").unlink(missing_ok=True)


@contextmanager
def lock_data_folder(
    data: Path, on_wait: Callable[[str], None] | None = None, on_mend: Callable[[str], None] = lambda _: None
) -> Generator[None]:
    """Hold the folder's lock. Raise `UserError` if another process holds it, or if the folder cannot be written, or is
    open to all users for good.

    `on_wait`: called with a sentence about what we wait for. If it is given, wait until the other process ends.
    `on_mend`: called with a sentence if the folder was open to other users and is closed now.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sentence := make_folder_private(data):
            on_mend(sentence)
        lock = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"The data folder {data} cannot be used: {(error.strerror or str(error)).lower()}.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = find_instance(data)
            holder_text = f" at {holder.url} (process {holder.pid})" if holder else ""
            if on_wait is None:
                message = f"Darkroom already runs on {data}{holder_text}: stop it first, or name another --data."
                raise UserError(message) from error
            on_wait(f"Darkroom already runs on {data}{holder_text}: this one stands by.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def check_port_free(host: str, port: int) -> None:
    """Raise `UserError` if nothing can listen there now."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise UserError(_listen_error_text(host, port, error)) from error


def _listen_error_text(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken on {host}: choose another with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than you have: choose one above 1023 with --port."
    return f"Nobody can listen on {host}:{port}: {(error.strerror or str(error)).lower()}."


def make_folder_private(folder: Path) -> str:
    """Close a folder of ours to other users; return a sentence if it was open, else an empty string.

    A folder that belongs to somebody else may stay open to its group, as volumes of container platforms are. Raises
    `UserError` if every user can enter it and we may not change that, or if it is a shared one such as /tmp.
    """
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077:
        return ""
    if mode & stat.S_ISVTX:
        raise UserError(f"{folder} is a folder that all users share: name another with --data or DARKROOM_DATA.")
    if status.st_uid == os.geteuid():
        folder.chmod(mode & ~0o077)
        return f"{folder} was open to other users of this machine (mode {mode:o}). Now it is private."
    if mode & 0o007:
        raise UserError(f"{folder} is open to all users of this machine, and is not yours: chmod o-rwx {folder}")
    return ""
