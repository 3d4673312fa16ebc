"""The interface of a database driver, and the choice of a driver by URL."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from bot.domain.errors import UserError
from bot.store.drivers.group_commit import Operation
from bot.store.drivers.sqlite import SqliteDatabase

T = TypeVar("T")

DRIVER_MISSING = "DATABASE_URL names PostgreSQL, and its driver is not installed: pip install 'darkroom-bot[postgres]'."


class Database(Protocol):
    """Runs plain functions of a connection as transactions, on its own threads."""

    @property
    def writer(self) -> Engine:
        """The engine for writes."""
        ...

    @property
    def reader(self) -> Engine:
        """The engine for reads."""
        ...

    async def run_write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is committed. Writers of all processes run one at a time, in
        the order of the calls. Raises what `operation` raises, or `DatabaseUnavailable`.
        """
        ...

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `write`, for a migration that may take long."""
        ...

    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables. Raises what `operation` raises, or `DatabaseUnavailable`."""
        ...

    async def truncate_log(self) -> bool:
        """Empty the write-ahead log, where it is ours: the bytes of deleted rows are in it. False: not possible now."""
        ...

    async def close(self) -> None:
        """Finish pending transactions, then close every connection."""
        ...


def select_driver(url: str) -> Database:
    """Return the driver for a URL, not connected yet. Raises `UserError` where its package is missing or the
    URL is wrong.
    """
    if url.startswith("sqlite"):
        return SqliteDatabase(make_url(url))
    if find_spec("psycopg") is None:
        raise UserError(DRIVER_MISSING, 400)
    from bot.store.drivers.postgres.driver import PostgresDatabase

    return PostgresDatabase(url)


def find_sqlite_path(url: str) -> Path | None:
    """Return the path of an SQLite database; None for any other."""
    parsed_url = make_url(url)
    return Path(parsed_url.database or "") if parsed_url.get_backend_name() == "sqlite" else None
