"""Database check for `darkroom doctor`: kind, version, latency and state of the tables. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from bot.store.drivers.database import select_driver
from bot.store.drivers.group_commit import Database
from bot.store.schema.migration import SchemaAge, read_schema_age

SCHEMA_TEXTS: dict[SchemaAge, str] = {
    "none": "its tables are made at the first start",
    "old": "its tables are brought up to date at the next start",
    "today's": "its tables are up to date",
    "unknown": "its tables are of another version of Darkroom",
}


@dataclass(frozen=True)
class DatabaseReport:
    """One line about the database. `remedy`: how to fix a problem; empty where there is none."""

    summary: str
    remedy: str = ""


async def check_database(url: str) -> DatabaseReport:
    """Describe the database at a URL. Raises `UserError` and `DatabaseUnavailable`."""
    if url.startswith("sqlite") and not _file_exists(url):
        return DatabaseReport(f"SQLite, {make_url(url).database} is made at the first start")
    database = await asyncio.to_thread(select_driver, url)
    try:
        return await _query_database(database)
    finally:
        await database.close()


async def _query_database(database: Database) -> DatabaseReport:
    started_at = time.monotonic()
    name = await database.run_read(_read_server_name)
    latency = f"answers in {1000 * (time.monotonic() - started_at):.0f} ms"
    schema_age = await database.run_read(read_schema_age)
    summary = f"{name}, {latency}; {SCHEMA_TEXTS[schema_age]}"
    if schema_age == "unknown":
        return DatabaseReport(summary, "Install that version, or name another database with DATABASE_URL.")
    if await database.run_read(_is_durability_off):
        return DatabaseReport(
            f"{summary}; a power cut loses what it confirmed", "Set fsync and synchronous_commit to on in it."
        )
    return DatabaseReport(summary)


def _file_exists(url: str) -> bool:
    return Path(make_url(url).database or "").is_file()


def _read_server_name(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        return f"SQLite {version} in {connection.engine.url.database}"
    query = text("SELECT current_setting('server_version') AS version, current_database() AS name")
    row = connection.execute(query).one()
    return f"PostgreSQL {row.version.split()[0]}, database {row.name}"


def _is_durability_off(connection: Connection) -> bool:
    """Return True where PostgreSQL is configured not to wait for its disk. On SQLite our pragmas make it wait."""
    if connection.dialect.name == "sqlite":
        return False
    query = text("SELECT current_setting('fsync') = 'off' OR current_setting('synchronous_commit') = 'off'")
    return bool(connection.execute(query).scalar_one())
