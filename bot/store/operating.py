"""Job administration for the operator, from outside the bot's process: list, cancel, requeue.

It makes the bot's transitions (`moves`) and marks their audit lines. A running bot detects changes by these lines
(`bot.queue.noticing`). Works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from bot.states import State
from bot.store import reads
from bot.store.moves import move, note, wish
from bot.store.records import Entry, Moved, Record
from bot.store.tables import jobs, moves

CANCELLED = "cancelled at the command line"
AGAIN = "asked for at the command line"
OVERLAP = 200  # audit lines that are read again: another process may commit a smaller number later


@dataclass(frozen=True)
class Sought:
    """A job filter; an empty field matches all. Newest first, or oldest first with `oldest`."""

    states: Sequence[State] = ()
    guild: str = ""
    member: str = ""
    limit: int = 20
    oldest: bool = False


def listed(connection: Connection, sought: Sought) -> list[Record]:
    """Return the matching jobs, deleted ones included."""
    asked = select(jobs).order_by(jobs.c.id if sought.oldest else jobs.c.id.desc()).limit(sought.limit)
    if sought.states:
        asked = asked.where(jobs.c.state.in_(sought.states))
    if sought.guild:
        asked = asked.where(jobs.c.guild == sought.guild)
    if sought.member:
        asked = asked.where(jobs.c.member == sought.member)
    return reads.records(connection, asked)


def named(connection: Connection, beginning: str, most: int) -> list[str]:
    """Return at most `most` job ids with this prefix, the newest first."""
    asked = select(jobs.c.id).where(jobs.c.id.startswith(beginning, autoescape=True))
    return list(connection.execute(asked.order_by(jobs.c.id.desc()).limit(most)).scalars())


def cancel(connection: Connection, job: str, now: float) -> Record | None:
    """End a waiting job, or flag a sent one as cancelling. Return the job now; None if there is none."""
    record, moved = wish(connection, job, now)
    if moved is not None:
        line = (moves.c.job == job, moves.c.target == "cancelled")
        connection.execute(update(moves).where(*line).values(why=CANCELLED))
    elif record is not None and record.cancelling:
        row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one()
        note(connection, row, record.state, now, CANCELLED)
    return record


def requeue(connection: Connection, job: str, now: float) -> Moved | None:
    """Queue a sent or running job again as its next attempt, and reset its count of attempts without progress.

    None if no worker has it. A running bot revokes the claim (`bot.queue.noticing`), and the job resumes from its
    newest snapshot.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()
    if row is None or row["cancelling"]:
        return None
    values = {"attempt": row["attempt"] + 1, "worker": "", "barren": 0}
    return move(connection, "requeue", job, now, why=AGAIN, **values)


def newest(connection: Connection) -> int:
    """Return the number of the last audit line."""
    return int(connection.execute(select(func.coalesce(func.max(moves.c.id), 0))).scalar_one())


def since(connection: Connection, number: int) -> tuple[int, dict[int, Entry]]:
    """Return the last audit line, and the outside changes after line `number` or up to `OVERLAP` lines before it."""
    last = newest(connection)
    asked = select(moves).where(moves.c.id > number - OVERLAP, moves.c.id <= last, moves.c.why.in_((CANCELLED, AGAIN)))
    found: dict[int, Entry] = {}
    for row in connection.execute(asked.order_by(moves.c.id)).mappings():
        found[row["id"]] = Entry(**{name: value for name, value in row.items() if name != "id"})
    return last, found
