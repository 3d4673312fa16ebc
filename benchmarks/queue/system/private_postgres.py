"""A private PostgreSQL for a measurement, in a temporary folder and with a Unix socket. It is deleted at the end.

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
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bot.domain.errors import UserError

RUN_AS_USERS = ("postgres", "nobody")  # users that run it where we are root
READY_SECONDS = 60.0
PORT = 5432  # a part of its socket's name; it listens on no network
DEBIAN_FOLDER = Path("/usr/lib/postgresql")  # Debian's folder, which is not on PATH


def find_programs() -> Path | None:
    """Return the folder of the newest `initdb` and `postgres`, or None."""
    paths = sorted(DEBIAN_FOLDER.glob("*/bin/initdb"), key=lambda path: _parse_version(path.parts[-3]))
    on_path = shutil.which("initdb")
    return paths[-1].parent if paths else Path(on_path).resolve().parent if on_path else None


def _parse_version(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


@asynccontextmanager
async def run_postgres() -> AsyncGenerator[str]:
    """Yield its URL for the store while the context lasts. Raises `UserError` if PostgreSQL is not available."""
    programs_folder = await asyncio.to_thread(find_programs)
    if programs_folder is None:
        raise UserError("No PostgreSQL is installed here.")
    with tempfile.TemporaryDirectory(prefix="darkroom-pg-", ignore_cleanup_errors=True) as temp_folder:
        folder = Path(temp_folder)
        run_as = _choose_user(Path(temp_folder))
        await asyncio.to_thread(_init_database, programs_folder, folder, run_as)
        options = [part for setting in _server_settings(folder) for part in ("-c", setting)]
        process = await asyncio.create_subprocess_exec(
            str(programs_folder / "postgres"),
            "-D",
            str(folder / "pg"),
            *options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **run_as,
        )
        try:
            await _wait_until_ready(process, folder / f".s.PGSQL.{PORT}")
            yield f"postgresql://darkroom@/postgres?host={quote(str(folder), safe='')}&port={PORT}"
        finally:
            await _stop(process)


def _server_settings(folder: Path) -> tuple[str, ...]:
    return "listen_addresses=", f"unix_socket_directories={folder}", f"port={PORT}", "max_connections=50"


def _choose_user(folder: Path) -> dict[str, Any]:
    """Return the user to run it as: ours, or for root an unprivileged one, who then owns the folder."""
    if os.geteuid() != 0:
        return {}
    user = next((entry for entry in map(_find_user, RUN_AS_USERS) if entry is not None), None)
    if user is None:
        raise UserError("PostgreSQL does not run as root, and there is no user postgres or nobody.")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _find_user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _init_database(programs_folder: Path, folder: Path, run_as: dict[str, Any]) -> None:
    options = ("-U", "darkroom", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", str(folder / "pg"))
    _run_program([str(programs_folder / "initdb"), *options], folder, run_as)


def _run_program(command: Sequence[str], folder: Path, run_as: dict[str, Any]) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **run_as)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise UserError(f"PostgreSQL could not be set up: {lines[-1] if lines else f'code {result.returncode}'}")


async def _wait_until_ready(process: asyncio.subprocess.Process, socket: Path) -> None:
    """Wait until it takes connections: it rejects them while it starts."""
    async with asyncio.timeout(READY_SECONDS):
        while not (Path(f"{socket}.lock").exists() and await _is_ready(socket)):
            if process.returncode is not None:
                raise UserError(f"PostgreSQL ended at its start with code {process.returncode}.")
            await asyncio.sleep(0.05)


async def _is_ready(socket: Path) -> bool:
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


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Stop it by a fast shutdown, which rolls back open transactions."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), READY_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
