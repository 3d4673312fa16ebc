"""Connections to the database: SQLite made durable, PostgreSQL as it comes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON")


def engines(url: str, readers: int) -> tuple[Engine, Engine]:
    """An engine for transactions that may write, one at a time, and one for `readers` that do not."""
    where = make_url(url)
    if where.get_backend_name() != "sqlite":
        one = create_engine(where, pool_size=readers + 1)
        return one, one
    where = where.set(drivername="sqlite")
    return _sqlite(where, "BEGIN IMMEDIATE", 1), _sqlite(where, "BEGIN", readers)


def _sqlite(url: URL, begin: str, connections: int) -> Engine:
    """An engine whose transactions begin as told: SQLite would lock only at the first write, too late to wait."""
    engine = create_engine(
        url, pool_size=connections, max_overflow=0, connect_args={"check_same_thread": False, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql(begin)

    return engine
