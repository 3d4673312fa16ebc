"""PostgreSQL: the lock that serialises writers, and a log that tells whether a commit whose reply was lost happened.

A transaction reads limits and admits jobs, so writers of all processes take turns, as SQLite's do: each transaction
takes one advisory lock first. Before it commits, it writes its number into the row of its writer. A connection that
dies during the commit leaves the outcome unknown; the next holder of the lock reads it from that row. The server's
transaction ids do not suffice: after a crash it may assign the same one again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, literal, select, text
from sqlalchemy.dialects.postgresql import insert

from bot.store.schema.tables import commit_log

LOCK_ID = int.from_bytes(b"darkroom", "big")
RETENTION_SECONDS = 86_400.0  # seconds until rows of ended writers are deleted, long after every outcome is resolved

_TAKE_LOCK = text(f"SELECT pg_advisory_xact_lock({LOCK_ID})")
_HAS_WRITTEN = text("pg_current_xact_id_if_assigned() IS NOT NULL")  # a transaction without writes needs no row


@dataclass(frozen=True)
class CommitId:
    """One transaction of one writer, by number."""

    writer: str
    number: int


def lock_writers(connection: Connection) -> None:
    """Wait for other writers to end, and block them until this transaction ends."""
    connection.execute(_TAKE_LOCK)


def record_commit(connection: Connection, commit: CommitId, now: float) -> None:
    """Write the commit's number; the last statement of a transaction. Raises if an earlier statement failed unseen."""
    row = select(literal(commit.writer), literal(commit.number), literal(now)).where(_HAS_WRITTEN)
    statement = insert(commit_log).from_select(["writer", "number", "at"], row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["writer"], set_={"number": commit.number, "at": now})
    )


def is_committed(connection: Connection, commit: CommitId) -> bool:
    """Return whether the commit happened. Call it under the lock: else the commit may still be in progress."""
    newest_number = connection.execute(select(commit_log.c.number).where(commit_log.c.writer == commit.writer)).scalar()
    return newest_number == commit.number


def delete_old_commits(connection: Connection, now: float) -> None:
    """Delete rows of writers that ended long ago."""
    connection.execute(delete(commit_log).where(commit_log.c.at < now - RETENTION_SECONDS))
