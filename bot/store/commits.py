"""One writer at a time on PostgreSQL, and what became of a commit whose answer was lost.

Limits are read and jobs admitted in one transaction, so writers of all processes take turns, as SQLite's do: each
transaction begins with one lock. Before it ends it notes its number in a row of its writer's own. A connection that
dies during the commit leaves open whether it was made; who takes the lock again reads it off that row. The server's own
numbers of transactions would not do: after a crash it may give out the same one again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, literal, select, text
from sqlalchemy.dialects.postgresql import insert

from bot.store.tables import commits

LOCK = int.from_bytes(b"darkroom", "big")
KEPT_SECONDS = 86_400.0  # rows of writers that are gone; any doubt is over long before

_lock = text(f"SELECT pg_advisory_xact_lock({LOCK})")
_wrote = text("pg_current_xact_id_if_assigned() IS NOT NULL")  # whoever wrote nothing leaves nothing to doubt


@dataclass(frozen=True)
class Commit:
    """One transaction of one writer."""

    writer: str
    number: int


def lock(connection: Connection) -> None:
    """Wait until no other writer is under way, and keep them waiting until this transaction ends."""
    connection.execute(_lock)


def note(connection: Connection, commit: Commit, now: float) -> None:
    """The last statement of a transaction. Raises where an earlier one has failed and somebody hid it."""
    row = select(literal(commit.writer), literal(commit.number), literal(now)).where(_wrote)
    written = insert(commits).from_select(["writer", "number", "at"], row)
    connection.execute(
        written.on_conflict_do_update(index_elements=["writer"], set_={"number": commit.number, "at": now})
    )


def happened(connection: Connection, commit: Commit) -> bool:
    """Whether it was made; ask under the lock, or it may still be under way."""
    found = connection.execute(select(commits.c.number).where(commits.c.writer == commit.writer)).scalar()
    return found == commit.number


def forget(connection: Connection, now: float) -> None:
    """Rows of writers that are long gone."""
    connection.execute(delete(commits).where(commits.c.at < now - KEPT_SECONDS))
