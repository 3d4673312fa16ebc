"""Makes the tables and brings them up to date, inside one transaction of the store: all or none.

Tables that are missing are made from the metadata, also those of a feature that was added later. The migrations of
`bot.migrations` change tables that exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from bot.domain.errors import UserError
from bot.domain.feature import load_parts
from bot.store.schema.tables import metadata

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"

SchemaAge = Literal["none", "old", "today's", "unknown"]


def migrate_tables(connection: Connection) -> None:
    """Bring the tables up to date. If two processes start at once, the second waits and finds the tables migrated.

    Raises `UserError` for tables of another version.
    """
    schema_age = read_schema_age(connection)
    if schema_age == "unknown":
        raise UserError(
            "The database is of another version of Darkroom: install that version, or set another database.", 400
        )
    load_parts("store")  # their tables are in the metadata then
    config = _alembic_config(connection)
    if schema_age == "old":
        command.upgrade(config, "head")
    metadata.create_all(connection, checkfirst=schema_age != "none")  # a database of somebody else is refused
    if schema_age == "none":
        command.stamp(config, "head")


def read_schema_age(connection: Connection) -> SchemaAge:
    """Return the age of the database's tables; `unknown` is a later version than this."""
    current_revision = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(_alembic_config(connection))
    if current_revision is None:
        return "none"
    if current_revision == script.get_current_head():
        return "today's"
    return "old" if current_revision in {known.revision for known in script.walk_revisions()} else "unknown"


def _alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
