"""Database check for `darkroom doctor`: kind, version, latency and state of the tables. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from bot.store.database import Database, database_at
from bot.store.upgrading import Age, age

TABLES: dict[Age, str] = {
    "none": "its tables are made at the first start",
    "old": "its tables are brought up to date at the next start",
    "today's": "its tables are up to date",
    "unknown": "its tables are of a later version of Darkroom",
}


@dataclass(frozen=True)
class Answer:
    """One line about the database. `mend`: how to fix a problem; empty where there is none."""

    says: str
    mend: str = ""


async def answering(url: str) -> Answer:
    """Describe the database at a URL. Raises `Refused` and `Unavailable`."""
    if url.startswith("sqlite") and not _exists(url):
        return Answer(f"SQLite, {make_url(url).database} is made at the first start")
    there = await asyncio.to_thread(database_at, url)
    try:
        return await _asked(there)
    finally:
        await there.close()


async def _asked(there: Database) -> Answer:
    begun = time.monotonic()
    name = await there.read(_name)
    took = f"answers in {1000 * (time.monotonic() - begun):.0f} ms"
    found = await there.read(age)
    says = f"{name}, {took}; {TABLES[found]}"
    if found == "unknown":
        return Answer(says, "Install that version, or name another database with DATABASE_URL.")
    if await there.read(_forgets):
        return Answer(f"{says}; a power cut loses what it confirmed", "Set fsync and synchronous_commit to on in it.")
    return Answer(says)


def _exists(url: str) -> bool:
    return Path(make_url(url).database or "").is_file()


def _name(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
        return f"SQLite {version} in {connection.engine.url.database}"
    asked = text("SELECT current_setting('server_version') AS version, current_database() AS name")
    row = connection.execute(asked).one()
    return f"PostgreSQL {row.version.split()[0]}, database {row.name}"


def _forgets(connection: Connection) -> bool:
    """Return True where PostgreSQL is configured not to wait for its disk. On SQLite our pragmas make it wait."""
    if connection.dialect.name == "sqlite":
        return False
    asked = text("SELECT current_setting('fsync') = 'off' OR current_setting('synchronous_commit') = 'off'")
    return bool(connection.execute(asked).scalar_one())
