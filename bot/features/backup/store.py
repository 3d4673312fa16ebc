"""Online backup of an SQLite database, and checks of such a copy.

Uses SQLite's online backup: it reads one snapshot, which in WAL mode blocks no writer. For PostgreSQL use pg_dump. The
copy leaves out Discord's interaction tokens, which are valid for 15 minutes, visitors' sessions, API keys, and the
secret tables of features: a restored copy signs nobody in again, revives no revoked key, and sends nothing to anybody.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, select

from bot.domain.feature import load_features
from bot.store.schema.tables import jobs, pictures

TIMEOUT_SECONDS = 10.0
REMOVE_TOKENS_SQL = """UPDATE places SET "where" = json_remove("where", '$.token') WHERE "where" LIKE '%"token"%'"""
SECRET_TABLES = ("sessions", "api_keys")  # and those of the features
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


class UnusableDatabase(ValueError):
    """The file is not a database of Darkroom, or belongs to a later version."""


def copy_database(source: Path, target: Path) -> None:
    """Copy all that is committed at the start, except tokens, sessions and keys. Raises `UnusableDatabase`, OSError.

    VACUUM writes the file anew, since SQLite leaves deleted and overwritten content in a file.
    """
    draft_path = target.with_name(f"{target.name}.draft")
    try:
        with _open_database(source) as source_database, _open_database(draft_path, create=True) as target_database:
            source_database.backup(target_database)
            target_database.execute("PRAGMA journal_mode=DELETE")
            with target_database:
                target_database.execute(REMOVE_TOKENS_SQL)
                for table in _list_secret_tables(target_database):
                    target_database.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of ours
            target_database.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        raise UnusableDatabase(f"The database {source} cannot be copied: {error}.") from error
    finally:
        draft_path.unlink(missing_ok=True)


def _list_secret_tables(database: sqlite3.Connection) -> list[str]:
    names = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    features = (table for feature in load_features().values() for table in feature.secret_tables)
    return [table for table in (*SECRET_TABLES, *features) if table in names]


def list_copy_hashes(file: Path) -> list[str]:
    """Return the SHA-256 of all pictures and ladders in a copy. Raises `UnusableDatabase` if it is not Darkroom's."""
    try:
        with _open_database(file) as database:
            _check_schema(database)
            query = "SELECT DISTINCT p.sha256 FROM pictures p JOIN jobs j ON j.id = p.job WHERE j.deleted IS NULL"
            return sorted(str(row[0]) for row in database.execute(query))
    except sqlite3.Error as error:
        raise UnusableDatabase(f"This is no database of Darkroom: {error}.") from error


def list_stored_hashes(connection: Connection) -> list[str]:
    """Return the same as `list_copy_hashes`, from the open store: for a database that another tool backs up."""
    query = select(pictures.c.sha256).join(jobs, jobs.c.id == pictures.c.job).where(jobs.c.deleted.is_(None))
    return sorted(connection.execute(query.distinct()).scalars())


def _check_schema(database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise UnusableDatabase(f"The database is damaged: {state}.")
    version_row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = str(version_row[0]) if version_row else ""
    if not revision:
        raise UnusableDatabase("This is no database of Darkroom: it has no version number.")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        ScriptDirectory.from_config(config).get_revision(revision)
    except CommandError as error:
        raise UnusableDatabase("It is of a later version of Darkroom: restore it with that version.") from error


@contextmanager
def _open_database(file: Path, *, create: bool = False) -> Generator[sqlite3.Connection]:
    address = f"{file.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    with closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_SECONDS)) as database:
        yield database
