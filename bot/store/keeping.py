"""Retention: removes ended jobs by age or for disk space, and remembers why each was removed.

Three steps, so that a crash between two of them leaks no file. The job is marked as deleted, with a row in `gone`. Its
pictures are deleted like those of any deleted job (`deleting`). Then its row goes, with all rows that refer to it.
Never removed: favourites, open jobs and their sources, undelivered results, jobs with an open incident. Each function
works inside its caller's transaction.
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
REMOVED: tuple[Why, ...] = ("age", "room")  # removed by retention, at nobody's request
BATCH = 200  # jobs in one transaction


def expired(connection: Connection, before: float, limit: int = BATCH) -> list[str]:
    """Return removable jobs that ended at `before` or earlier, the oldest first."""
    asked = select(jobs.c.id).where(jobs.c.ended <= before, _may_go(), _not_yet()).order_by(jobs.c.ended).limit(limit)
    return list(connection.execute(asked).scalars())


def oldest(connection: Connection, before: float, limit: int = BATCH) -> list[tuple[str, int]]:
    """Return removable jobs with pictures that ended at `before` or earlier, the oldest first, each with its bytes."""
    size = select(func.coalesce(func.sum(pictures.c.bytes), 0)).where(pictures.c.job == jobs.c.id).scalar_subquery()
    asked = select(jobs.c.id, size.label("size")).where(jobs.c.ended <= before, jobs.c.deleted.is_(None), _may_go())
    kept = asked.where(exists().where(pictures.c.job == jobs.c.id)).order_by(jobs.c.ended).limit(limit)
    return [(row.id, int(row.size)) for row in connection.execute(kept)]


def used(connection: Connection) -> int:
    """Return the bytes of all pictures and ladders of undeleted jobs, each content counted once."""
    kept = select(func.max(pictures.c.bytes).label("bytes")).join(jobs, jobs.c.id == pictures.c.job)
    each = kept.where(jobs.c.deleted.is_(None)).group_by(pictures.c.sha256).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(each.c.bytes), 0))).scalar_one())


def let_go(connection: Connection, ids: Sequence[str], why: Why, now: float) -> list[str]:
    """Take the first step for jobs that are still removable: a member may have made one a favourite meanwhile."""
    asked = select(jobs.c.id).where(jobs.c.id.in_(ids), _may_go(), _not_yet())
    going = list(connection.execute(asked).scalars())
    withdraw(connection, going, now)
    note(connection, going, why, now)
    return going


def note(connection: Connection, ids: Sequence[str], why: Why, now: float) -> None:
    """Record why jobs were removed. An earlier reason stays."""
    known = set(connection.execute(select(gone.c.job).where(gone.c.job.in_(ids))).scalars())
    rows = [{"job": job, "at": now, "why": why} for job in ids if job not in known]
    if rows:
        connection.execute(gone.insert(), rows)


def going(connection: Connection, whys: Sequence[Why], after: str = "", limit: int = BATCH) -> list[tuple[str, Why]]:
    """Return jobs after the first step whose rows still exist, in order, after id `after`."""
    asked = select(gone.c.job, gone.c.why).join(jobs, jobs.c.id == gone.c.job)
    asked = asked.where(gone.c.why.in_(whys), gone.c.job > after).order_by(gone.c.job).limit(limit)
    return [(row.job, cast(Why, row.why)) for row in connection.execute(asked)]


def drop(connection: Connection, ids: Sequence[str], now: float) -> list[str]:
    """Take the last step: delete the rows of ended jobs without pictures. Their charges stay, anonymised."""
    emptied = ~exists().where(pictures.c.job == jobs.c.id)
    asked = select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.deleted.is_not(None), jobs.c.state.in_(ENDS), emptied)
    bare = list(connection.execute(asked).scalars())
    spent.keep(connection, bare, now)
    connection.execute(jobs.delete().where(jobs.c.id.in_(bare)))
    return bare


def why_gone(connection: Connection, job: str) -> Why | None:
    """Return why a job was removed; None if unknown."""
    found = connection.execute(select(gone.c.why).where(gone.c.job == job)).scalar_one_or_none()
    return cast("Why | None", found)


def lapse(connection: Connection, before: float, limit: int = BATCH) -> int:
    """Delete reasons recorded before `before`, unless the job's row still exists. Return how many."""
    old = select(gone.c.job).where(gone.c.at <= before, ~exists().where(jobs.c.id == gone.c.job)).limit(limit)
    return connection.execute(gone.delete().where(gone.c.job.in_(old))).rowcount


def _may_go() -> ColumnElement[bool]:
    liked = exists().where(favourites.c.job == jobs.c.id)
    owed = exists().where(places.c.job == jobs.c.id, places.c.kind == "discord", places.c.delivered.is_(None))
    asked = exists().where(incidents.c.job == jobs.c.id, incidents.c.closed.is_(None))
    child = jobs.alias("child")
    needed = exists().where(child.c.parent == jobs.c.id, child.c.state.in_(OPEN))  # an upscale reads its picture
    return and_(jobs.c.state.in_(ENDS), ~liked, ~owed, ~asked, ~needed)


def _not_yet() -> ColumnElement[bool]:
    return ~exists().where(gone.c.job == jobs.c.id)
