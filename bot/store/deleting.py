"""Deletes jobs' pictures in two steps, so that a crash leaves no file: mark the jobs, then delete picture by picture.

A row in `pictures` of a deleted job says that its file may still exist. Each function works inside its caller's
transaction; `bot.desk.moderation` deletes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from bot.store import heirs, incidents
from bot.store.records import Stored
from bot.store.tables import favourites, jobs, pictures, places
from bot.store.walks import parts

AT_ONCE = 500  # most leftovers in one query


def with_enlargements(connection: Connection, job: str) -> list[str]:
    """Return the job and every upscale of its pictures, over or not: they are the same picture.

    All jobs of an interpolation are deleted together, since its film shows the pictures of each.
    """
    found = [job, *(part.id for part in parts(connection, job) if part.id != job)]
    newest = list(found)
    while newest:
        children = select(jobs.c.id).where(jobs.c.parent.in_(newest), jobs.c.action == "upscale")
        newest = [row.id for row in connection.execute(children) if row.id not in found]
        found += newest
    return found


def mark(connection: Connection, ids: Sequence[str], actor: tuple[str, str], now: float) -> list[str]:
    """Mark jobs as deleted, cancel their deliveries, and return those that were not deleted before. Other members' jobs
    that began with one of them keep their results and lose their input.

    Writes one incident, for the first job. A member who deletes an own job gets one only if it was reported: else they
    could flood the moderators' list.
    """
    marked, told = withdraw(connection, ids, now)
    gone = list(marked)
    heirs.disinherit(connection, gone)
    if ids[0] in marked and (told or marked[ids[0]].member != actor[0]):
        others = [row.action for job, row in marked.items() if job != ids[0]]
        enlarged, walked = others.count("upscale"), len(others) - others.count("upscale")
        said = " and ".join(
            [f"with {enlarged} upscaled"] * bool(enlarged) + [f"{walked} more of its interpolation"] * bool(walked)
        )
        incidents.note(connection, marked[ids[0]].guild, "deleted", *actor, said, now, ids[0])
    return gone


def withdraw(connection: Connection, ids: Sequence[str], now: float) -> tuple[dict[str, Row[*tuple[Any, ...]]], bool]:
    """Do as `mark` without an incident. Return each job's guild, member and action, and whether one was reported."""
    marking = update(jobs).where(jobs.c.id.in_(ids), jobs.c.deleted.is_(None)).values(deleted=now)
    marked: dict[str, Row[*tuple[Any, ...]]] = {
        row.id: row
        for row in connection.execute(marking.returning(jobs.c.id, jobs.c.guild, jobs.c.member, jobs.c.action))
    }
    gone = list(marked)
    connection.execute(favourites.delete().where(favourites.c.job.in_(gone)))
    connection.execute(
        update(places).where(places.c.job.in_(gone), places.c.delivered.is_(None)).values(delivered=now)
    )  # fmt: skip
    return marked, incidents.settle(connection, gone, now)


def leftovers(connection: Connection, ids: Sequence[str] | None = None) -> list[Stored]:
    """Return pictures and ladders of deleted jobs (None: of any) whose files may still exist."""
    gone = select(jobs.c.id).where(jobs.c.deleted.is_not(None))
    gone = gone if ids is None else gone.where(jobs.c.id.in_(ids))
    asked = select(pictures).where(pictures.c.job.in_(gone)).limit(AT_ONCE)
    return [Stored(**row) for row in connection.execute(asked).mappings()]


def unused(connection: Connection, sha256: str) -> bool:
    """Return True if no undeleted job has a picture of this content."""
    asked = select(pictures.c.job).join(jobs, jobs.c.id == pictures.c.job)
    return connection.execute(asked.where(pictures.c.sha256 == sha256, jobs.c.deleted.is_(None))).first() is None


def unnamed(connection: Connection, names: Sequence[str]) -> list[str]:
    """Return the contents that no job names, deleted or not."""
    asked = select(pictures.c.sha256).where(pictures.c.sha256.in_(names))
    known = set(connection.execute(asked).scalars())
    return [name for name in names if name not in known]


def emptied(connection: Connection, one: Stored) -> None:
    """Drop the row of a picture whose file was deleted or belongs to another job."""
    same = (pictures.c.job == one.job, pictures.c.image == one.image, pictures.c.kind == one.kind)
    connection.execute(pictures.delete().where(*same, pictures.c.sha256 == one.sha256))
