"""Online backup of an SQLite database, and checks of such a copy.

Uses SQLite's online backup: it reads one snapshot, which in WAL mode blocks no writer. For PostgreSQL use pg_dump. The
copy leaves out Discord's interaction tokens: anybody who has one can use it for 15 minutes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, select
from sqlalchemy.engine import make_url

from bot.store.tables import jobs, pictures

PATIENCE_SECONDS = 10.0
TOKENLESS = """UPDATE places SET "where" = json_remove("where", '$.token') WHERE "where" LIKE '%"token"%'"""
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class Unusable(ValueError):
    """The file is not a database of Darkroom, or of a later version."""


def file_of(url: str) -> Path | None:
    """Return the path of an SQLite database; None for any other."""
    where = make_url(url)
    return Path(where.database or "") if where.get_backend_name() == "sqlite" else None


def copy(source: Path, target: Path) -> None:
    """Copy everything committed at the start, except tokens, to one file. Raises `Unusable`, OSError.

    VACUUM writes the file anew, since SQLite leaves deleted and overwritten content in a file.
    """
    draft = target.with_name(f"{target.name}.draft")
    try:
        with _opened(source) as original, _opened(draft, make=True) as made:
            original.backup(made)
            made.execute("PRAGMA journal_mode=DELETE")
            with made:
                made.execute(TOKENLESS)
            made.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        raise Unusable(f"The database {source} cannot be copied: {error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def contents(file: Path) -> list[str]:
    """Return the SHA-256 of every picture and ladder that a copy names. Raises `Unusable` if it is not Darkroom's."""
    try:
        with _opened(file) as opened:
            _check(opened)
            asked = "SELECT DISTINCT p.sha256 FROM pictures p JOIN jobs j ON j.id = p.job WHERE j.deleted IS NULL"
            return sorted(str(row[0]) for row in opened.execute(asked))
    except sqlite3.Error as error:
        raise Unusable(f"This is no database of Darkroom: {error}.") from error


def named(connection: Connection) -> list[str]:
    """Return the same as `contents`, from the open store: for databases that other tools back up."""
    asked = select(pictures.c.sha256).join(jobs, jobs.c.id == pictures.c.job).where(jobs.c.deleted.is_(None))
    return sorted(connection.execute(asked.distinct()).scalars())


def _check(opened: sqlite3.Connection) -> None:
    (state,) = opened.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise Unusable(f"The database is damaged: {state}.")
    found = opened.execute("SELECT version_num FROM alembic_version").fetchone()
    revision = str(found[0]) if found else ""
    if not revision:
        raise Unusable("This is no database of Darkroom: it has no version number.")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        ScriptDirectory.from_config(config).get_revision(revision)
    except CommandError as error:
        raise Unusable("It is of a later version of Darkroom: restore it with that version.") from error


@contextmanager
def _opened(file: Path, *, make: bool = False) -> Iterator[sqlite3.Connection]:
    address = f"{file.absolute().as_uri()}?mode={'rwc' if make else 'rw'}"
    with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE_SECONDS)) as opened:
        yield opened
