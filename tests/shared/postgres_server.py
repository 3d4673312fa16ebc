"""A real PostgreSQL for tests: a cluster in its own folder, a database for each test, and ways to kill it.

PostgreSQL refuses to run as root, so root runs it as an unprivileged user. It does not sync to disk: no test cuts the
power.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bot.store import Store
from bot.store.schema.tables import metadata

ROLE = "darkroom"
PASSWORD = "hunter2"
UNPRIVILEGED_USERS = ("postgres", "nobody")  # users that may run the server
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
}
PATIENCE_SECONDS = 60.0


def programs() -> Path | None:
    """The folder of the newest PostgreSQL on this machine."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("postgres")
    return installed[-1] if installed else (Path(found).parent if found else None)


class Server:
    """A cluster that listens on a socket in its folder without a password, and on a port with a password."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self._bin = bin_
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        self._shared = ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def make(self) -> None:
        """Creates the cluster. Its collation sorts like people, not by code points, as on many real servers."""
        user = self._user()
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        secret = self._folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        locale = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
        access = ("-U", ROLE, "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}")
        command = ["initdb", "-D", str(self._data), "--no-sync", *locale, *access]
        subprocess.run(self._as_unprivileged(command), check=True, capture_output=True, cwd=self._folder)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = SETTINGS | {"unix_socket_directories": str(self._folder), "port": str(self.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = self._as_unprivileged(["postgres", "-D", str(self._data), *options])
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        self.await_answer()

    def await_answer(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.sql("SELECT 1")
            except psycopg.Error:
                assert time.monotonic() < until, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT stops at once but in order: the server notifies its clients. SIGQUIT stops like a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def crash(self) -> None:
        """Kills one session's process, which ends every session. The server recovers by itself."""
        for child in self.sessions()[:1]:
            child.kill()

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve our roles."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [child for child in children if f": {ROLE} " in " ".join(child.cmdline())]

    def url(self, database: str, *, port: bool = False, password: str = PASSWORD) -> str:
        if port:
            return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{ROLE}@/{database}?host={self._folder}&port={self.port}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs a statement. Call it from a thread without an event loop."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            result = connection.execute(statement.encode())
            return result.fetchall() if result.description else []

    def migrate(self) -> None:
        """Creates the database that the others copy."""

        async def create_tables() -> None:
            await (await Store.open(self.url("migrated"))).close()

        self.sql("CREATE DATABASE migrated")
        asyncio.run(create_tables())

    def emptied(self) -> str:
        """The database that tests share one after another, with all current tables and no rows."""
        if not self._shared:
            self._shared = self.database()
        else:
            tables = [table.name for table in reversed(metadata.sorted_tables)]
            restart = "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'"
            # a TRUNCATE makes new files of every table and index, which takes four times as long
            self.sql("".join(f'DELETE FROM "{name}"; ' for name in tables) + restart, self._shared)
        return self._shared

    def database(self, template: str = "migrated") -> str:
        """Creates a database with all current tables, or from `template0` with none; returns its name."""
        name = f"d{next(self._names)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _as_unprivileged(self, command: list[str]) -> list[str]:
        program = [str(self._bin / command[0]), *command[1:]]
        user = self._user()
        if user is None:
            return program
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *program]

    @staticmethod
    def _user() -> pwd.struct_passwd | None:
        """The user that root switches to; None without root."""
        if os.getuid() != 0:
            return None
        known = {user.pw_name: user for user in pwd.getpwall()}
        return next(known[name] for name in UNPRIVILEGED_USERS if name in known)


@contextmanager
def serving(bin_: Path) -> Iterator[Server]:
    """A server with the migrated database. Its folder has a short path, because the socket needs one."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = Server(bin_, folder)
    try:
        server.make()
        server.start()
        server.migrate()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
