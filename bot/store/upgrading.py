"""Runs the Alembic migrations of `bot.migrations` inside one transaction of the store: all or none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from bot.refused import Refused

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

Age = Literal["none", "old", "today's", "unknown"]


def upgrade(connection: Connection, to: str = "head") -> None:
    """Migrate the tables to `to`. Of two processes that start at once, the second waits and finds it done.

    Raises `Refused` for tables of a later version.
    """
    if age(connection) == "unknown":
        raise Refused(
            "The database is of a later version of Darkroom: install that version, or set another database.", 400
        )
    command.upgrade(_config(connection), to)


def age(connection: Connection) -> Age:
    """Return the age of the database's tables; `unknown` is a later version than this."""
    found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(_config(connection))
    if found is None:
        return "none"
    if found == script.get_current_head():
        return "today's"
    return "old" if found in {one.revision for one in script.walk_revisions()} else "unknown"


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
