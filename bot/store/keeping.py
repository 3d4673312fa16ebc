"""What may go and what went: finished jobs by age or for room, and the word that is left of each.

A job goes in three steps, so that a crash between any two loses no blob: it is let go (marked as deleted, with a row in
`gone`), its pictures are emptied as those of any deleted job (`deleting`), then its row goes with all that hangs on it.
Favourites stay, and what is open or needed by what is, owed to somebody, or waits for a moderator. Each function works
inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select

from bot.states import ENDS, OPEN
from bot.store import spent
from bot.store.deleting import withdraw
from bot.store.tables import favourites, incidents, jobs, pictures, places
from bot.store.traces import gone

Why = Literal["age", "room", "forgotten", "enlarged"]
REMOVED: tuple[Why, ...] = ("age", "room")  # by us, of our own accord
BATCH = 200  # jobs in one transaction


def expired(connection: Connection, before: float, limit: int = BATCH) -> list[str]:
    """The jobs that ended longest ago, at `before` or earlier, and may go."""
    asked = select(jobs.c.id).where(jobs.c.ended <= before, _may_go(), _not_yet()).order_by(jobs.c.ended).limit(limit)
    return list(connection.execute(asked).scalars())


def oldest(connection: Connection, before: float, limit: int = BATCH) -> list[tuple[str, int]]:
    """The jobs with pictures that ended longest ago, before `before`, and may go; each with the bytes that it names."""
    size = select(func.coalesce(func.sum(pictures.c.bytes), 0)).where(pictures.c.job == jobs.c.id).scalar_subquery()
    asked = select(jobs.c.id, size.label("size")).where(jobs.c.ended <= before, jobs.c.deleted.is_(None), _may_go())
    kept = asked.where(exists().where(pictures.c.job == jobs.c.id)).order_by(jobs.c.ended).limit(limit)
    return [(row.id, int(row.size)) for row in connection.execute(kept)]


def used(connection: Connection) -> int:
    """Bytes of all pictures and ladders that are named, each content once."""
    kept = select(func.max(pictures.c.bytes).label("bytes")).join(jobs, jobs.c.id == pictures.c.job)
    each = kept.where(jobs.c.deleted.is_(None)).group_by(pictures.c.sha256).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(each.c.bytes), 0))).scalar_one())


def let_go(connection: Connection, ids: Sequence[str], why: Why, now: float) -> list[str]:
    """The first step, for those of them that still may go: somebody may have favoured one since they were found."""
    asked = select(jobs.c.id).where(jobs.c.id.in_(ids), _may_go(), _not_yet())
    going = list(connection.execute(asked).scalars())
    withdraw(connection, going, now)
    note(connection, going, why, now)
    return going


def note(connection: Connection, ids: Sequence[str], why: Why, now: float) -> None:
    """Why they went. What is noted already stays as it is."""
    known = set(connection.execute(select(gone.c.job).where(gone.c.job.in_(ids))).scalars())
    rows = [{"job": job, "at": now, "why": why} for job in ids if job not in known]
    if rows:
        connection.execute(gone.insert(), rows)


def going(connection: Connection, whys: Sequence[Why], after: str = "", limit: int = BATCH) -> list[tuple[str, Why]]:
    """Jobs that were let go and whose rows are still there, in order, from beyond `after`."""
    asked = select(gone.c.job, gone.c.why).join(jobs, jobs.c.id == gone.c.job)
    asked = asked.where(gone.c.why.in_(whys), gone.c.job > after).order_by(gone.c.job).limit(limit)
    return [(row.job, cast(Why, row.why)) for row in connection.execute(asked)]


def drop(connection: Connection, ids: Sequence[str], now: float) -> list[str]:
    """The last step, for those that are over and have no picture left; their charges stay, without a name."""
    emptied = ~exists().where(pictures.c.job == jobs.c.id)
    asked = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.deleted.is_not(None), jobs.c.state.in_(ENDS), emptied)
    bare = list(connection.execute(asked).scalars())
    spent.keep(connection, bare, now)
    connection.execute(jobs.delete().where(jobs.c.id.in_(bare)))
    return bare


def why_gone(connection: Connection, job: str) -> Why | None:
    """Why it is not here any more; None if nothing is known of it."""
    found = connection.execute(select(gone.c.why).where(gone.c.job == job)).scalar_one_or_none()
    return cast("Why | None", found)


def lapse(connection: Connection, before: float, limit: int = BATCH) -> int:
    """Forget what went before `before`; a row that still hangs on a job stays. How many were forgotten."""
    old = select(gone.c.job).where(gone.c.at <= before, ~exists().where(jobs.c.id == gone.c.job)).limit(limit)
    return connection.execute(gone.delete().where(gone.c.job.in_(old))).rowcount


def _may_go() -> ColumnElement[bool]:
    liked = exists().where(favourites.c.job == jobs.c.id)
    owed = exists().where(places.c.job == jobs.c.id, places.c.kind == "discord", places.c.delivered.is_(None))
    asked = exists().where(incidents.c.job == jobs.c.id, incidents.c.closed.is_(None))
    child = jobs.alias("child")
    needed = exists().where(child.c.parent == jobs.c.id, child.c.state.in_(OPEN))  # an enlargement reads its picture
    return and_(jobs.c.state.in_(ENDS), ~liked, ~owed, ~asked, ~needed)


def _not_yet() -> ColumnElement[bool]:
    return ~exists().where(gone.c.job == jobs.c.id)
