"""Jobs whose pictures are taken away: marked first, then emptied picture by picture, so that no crash leaves any.

A row in `pictures` of a deleted job says that its file may still be there. Each function works inside its caller's
transaction; the files are `bot.desk.moderation`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from bot.store import heirs, incidents
from bot.store.records import Stored
from bot.store.tables import favourites, jobs, pictures, places
from bot.store.walks import parts

AT_ONCE = 500  # leftovers


def with_enlargements(connection: Connection, job: str) -> list[str]:
    """The job and every enlargement of its pictures, over or not: they are the same picture.

    Of a walk all jobs go together, since its film shows the pictures of each.
    """
    found = [job, *(part.id for part in parts(connection, job) if part.id != job)]
    newest = list(found)
    while newest:
        children = select(jobs.c.id).where(jobs.c.parent.in_(newest), jobs.c.action == "upscale")
        newest = [row.id for row in connection.execute(children) if row.id not in found]
        found += newest
    return found


def mark(connection: Connection, ids: Sequence[str], actor: tuple[str, str], now: float) -> list[str]:
    """Their pictures belong to nobody from now on, and nothing of them is owed to anybody; those that were not deleted.
    Others' jobs that began with one of them keep what they made, and not what they began with.

    Noted once, for the first of them; of one's own only where somebody had told the moderators of it, or whoever makes
    and deletes would fill their list.
    """
    marked, told = withdraw(connection, ids, now)
    gone = list(marked)
    heirs.disinherit(connection, gone)
    if ids[0] in marked and (told or marked[ids[0]].member != actor[0]):
        others = [row.action for job, row in marked.items() if job != ids[0]]
        enlarged, walked = others.count("upscale"), len(others) - others.count("upscale")
        said = " and ".join(
            [f"with {enlarged} enlarged"] * bool(enlarged) + [f"{walked} more of its walk"] * bool(walked)
        )
        incidents.note(connection, marked[ids[0]].guild, "deleted", *actor, said, now, ids[0])
    return gone


def withdraw(connection: Connection, ids: Sequence[str], now: float) -> tuple[dict[str, Row[*tuple[Any, ...]]], bool]:
    """As `mark`, but nothing is noted: who made each and where, and whether somebody had told the moderators of one."""
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
    """Pictures and ladders of deleted jobs (of these, or None: of any), as long as their files may be there."""
    gone = select(jobs.c.id).where(jobs.c.deleted.is_not(None))
    gone = gone if ids is None else gone.where(jobs.c.id.in_(ids))
    asked = select(pictures).where(pictures.c.job.in_(gone)).limit(AT_ONCE)
    return [Stored(**row) for row in connection.execute(asked).mappings()]


def unused(connection: Connection, sha256: str) -> bool:
    """True if no job that was not deleted has a picture of this content."""
    asked = select(pictures.c.job).join(jobs, jobs.c.id == pictures.c.job)
    return connection.execute(asked.where(pictures.c.sha256 == sha256, jobs.c.deleted.is_(None))).first() is None


def unnamed(connection: Connection, names: Sequence[str]) -> list[str]:
    """Those of these contents that no job has, deleted or not."""
    asked = select(pictures.c.sha256).where(pictures.c.sha256.in_(names))
    known = set(connection.execute(asked).scalars())
    return [name for name in names if name not in known]


def emptied(connection: Connection, one: Stored) -> None:
    """Its file is gone, or another job's."""
    same = (pictures.c.job == one.job, pictures.c.image == one.image, pictures.c.kind == one.kind)
    connection.execute(pictures.delete().where(*same, pictures.c.sha256 == one.sha256))
