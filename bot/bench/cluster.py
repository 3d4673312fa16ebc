"""A private PostgreSQL for a measurement: made in a temporary folder, reached by a Unix socket, deleted at the end.

It is as durable as by default: `fsync` stays on. PostgreSQL refuses to run as root; then another user runs it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bot.refused import Refused

SERVANTS = ("postgres", "nobody")  # users that run it where we are root
READY_SECONDS = 60.0
PORT = 5432  # a part of its socket's name; it listens on no network
INSTALLED = Path("/usr/lib/postgresql")  # Debian's folder, which is not on PATH


def programs() -> Path | None:
    """Return the folder of the newest `initdb` and `postgres`, or None."""
    found = sorted(INSTALLED.glob("*/bin/initdb"), key=lambda path: _number(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


@asynccontextmanager
async def cluster() -> AsyncIterator[str]:
    """Yield its URL for the store while the context lasts. Raise `Refused` if PostgreSQL is not available."""
    where = await asyncio.to_thread(programs)
    if where is None:
        raise Refused("No PostgreSQL is installed here.")
    with tempfile.TemporaryDirectory(prefix="darkroom-pg-", ignore_cleanup_errors=True) as fresh:
        folder, rights = Path(fresh), _rights(Path(fresh))
        await asyncio.to_thread(_make, where, folder, rights)
        options = [part for setting in _settings(folder) for part in ("-c", setting)]
        process = await asyncio.create_subprocess_exec(
            str(where / "postgres"), "-D", str(folder / "pg"), *options, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **rights,
        )  # fmt: skip
        try:
            await _answers(process, folder / f".s.PGSQL.{PORT}")
            yield f"postgresql://darkroom@/postgres?host={quote(str(folder), safe='')}&port={PORT}"
        finally:
            await _end(process)


def _settings(folder: Path) -> tuple[str, ...]:
    return "listen_addresses=", f"unix_socket_directories={folder}", f"port={PORT}", "max_connections=50"


def _rights(folder: Path) -> dict[str, Any]:
    """Return the user to run it as: ours, or for root an unprivileged one, who then owns the folder."""
    if os.geteuid() != 0:
        return {}
    servant = next((one for one in map(_known, SERVANTS) if one is not None), None)
    if servant is None:
        raise Refused("PostgreSQL does not run as root, and there is no user postgres or nobody.")
    os.chown(folder, servant.pw_uid, servant.pw_gid)
    return {"user": servant.pw_uid, "group": servant.pw_gid, "extra_groups": []}


def _known(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _make(where: Path, folder: Path, rights: dict[str, Any]) -> None:
    options = ("-U", "darkroom", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", str(folder / "pg"))
    _run([str(where / "initdb"), *options], folder, rights)


def _run(command: Sequence[str], folder: Path, rights: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **rights)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Refused(f"PostgreSQL could not be set up: {lines[-1] if lines else f'code {done.returncode}'}")


async def _answers(process: asyncio.subprocess.Process, socket: Path) -> None:
    """Wait until it takes connections: it rejects them while it starts."""
    async with asyncio.timeout(READY_SECONDS):
        while not (Path(f"{socket}.lock").exists() and await _ready(socket)):
            if process.returncode is not None:
                raise Refused(f"PostgreSQL ended at its start with code {process.returncode}.")
            await asyncio.sleep(0.05)


async def _ready(socket: Path) -> bool:
    """Return whether it answers a startup message with anything but an error (protocol 3.0, message flow)."""
    body = b"\0\x03\0\0user\0darkroom\0database\0postgres\0\0"
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write((len(body) + 4).to_bytes(4, "big") + body)
        try:
            return await reader.read(1) == b"R"
        finally:
            writer.close()
    except OSError:
        return False


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop it by a fast shutdown, which rolls back open transactions."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), READY_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
