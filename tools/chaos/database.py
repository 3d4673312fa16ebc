"""The two databases of a campaign: SQLite's file in the data folder, or a PostgreSQL server of its own.

Reads tables without the bot's code, by sqlite3 or psql. Knows SQL and processes, not what rows mean.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from engine.bus.embedded_broker import find_free_port
from tools.chaos.program import Program
from tools.chaos.timeline import Timeline

BINARIES = (Path("/usr/lib/postgresql/15/bin"), Path("/usr/lib/postgresql/16/bin"), Path("/usr/lib/postgresql/17/bin"))
START_TIMEOUT = 60.0


class SQLite:
    """Has no process: a fault can only lock it or fill its disk."""

    program: Program | None = None
    url = ""

    def __init__(self, data: Path) -> None:
        self.file = data / "darkroom.sqlite"

    def delete(self) -> None:
        """Does nothing: the file is in the campaign's folder."""

    async def lock(self, seconds: float) -> None:
        """Locks out all other writers for so long."""
        await asyncio.to_thread(self._lock, seconds)

    def _lock(self, seconds: float) -> None:
        with (
            suppress(sqlite3.OperationalError),  # the disk may be full, or the bot may never stop writing
            closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as store,
        ):
            store.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            store.execute("ROLLBACK")

    def query_rows(self, query: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=30)) as store:
            store.row_factory = sqlite3.Row
            return [dict(row) for row in store.execute(query)]


class PostgreSQL:
    """A cluster in a folder. For root the server runs as another user, since it refuses to run as root."""

    def __init__(self, log: Path, timeline: Timeline) -> None:
        self.port = find_free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="darkroom-chaos-"))  # the other user may enter it
        self._bin = next((path for path in BINARIES if path.exists()), Path("/usr/bin"))
        self._as_user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        )
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        command = [
            *self._as_user,
            str(self._bin / "postgres"),
            "-D",
            str(self.folder / "cluster"),
            "-p",
            str(self.port),
        ]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        self.program: Program | None = Program("database", command, log, timeline)

    def create_cluster(self) -> None:
        """Creates the empty cluster."""
        if self._as_user:
            shutil.chown(self.folder, "postgres", "postgres")
        command = [*self._as_user, str(self._bin / "initdb"), "-D", str(self.folder / "cluster"), "-U", "postgres"]
        subprocess.run([*command, "-A", "trust", "-E", "UTF8"], check=True, capture_output=True, cwd="/")

    def delete(self) -> None:
        """Deletes the cluster, which cannot be in the campaign's folder, once nobody needs to inspect it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def wait_until_ready(self) -> None:
        """Waits until the server answers."""
        async with asyncio.timeout(START_TIMEOUT):
            while not await asyncio.to_thread(self._is_ready):
                await asyncio.sleep(0.1)

    def _is_ready(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def query_rows(self, query: str) -> list[dict[str, Any]]:
        json_query = f"SELECT coalesce(json_agg(t), '[]') FROM ({query}) t"
        command = [
            str(self._bin / "psql"),
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "postgres",
            "-Atc",
            json_query,
        ]
        completed = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(completed.stdout)


Database = SQLite | PostgreSQL
