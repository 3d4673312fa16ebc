"""Verdicts of the picture check and decisions of moderators about pictures, with their incidents.

Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, bindparam, exists, select, update

from bot.incidents import Kind
from bot.refused import Refused
from bot.sentences import DELETED
from bot.store import incidents
from bot.store.reads import records, stored
from bot.store.records import Record, Stored
from bot.store.tables import jobs, pictures
from bot.views import Member

_CHECK = select(jobs.c.check, jobs.c.deleted).where(jobs.c.id == bindparam("job"))
SAID = {"flagged": "was flagged by the picture check", "unchecked": "could not be checked"}


def kept(connection: Connection, job: str) -> tuple[bool, list[Stored]]:
    """Return whether a job's pictures need the picture check before they are shown, and its pictures and ladders.

    Raises `Refused` (404) if they were deleted.
    """
    row = connection.execute(_CHECK, {"job": job}).first()
    if row is not None and row.deleted is not None:
        raise Refused(DELETED, 404)
    return bool(row and row.check), stored(connection, [job])


def same(connection: Connection, contents: Sequence[str]) -> list[tuple[bool, Stored]]:
    """Return the images of these contents in undeleted jobs, each with whether its job needs the check."""
    asked = select(pictures, jobs.c.check).join(jobs, jobs.c.id == pictures.c.job)
    asked = asked.where(pictures.c.sha256.in_(contents), pictures.c.kind == "image", jobs.c.deleted.is_(None))
    rows = [dict(row) for row in connection.execute(asked).mappings()]
    return [(bool(row.pop("check")), Stored(**row)) for row in rows]


def note_held(connection: Connection, one: Stored, before: str | None, now: float) -> None:
    """Write an incident for an incoming picture that is held, unless `before`, its earlier verdict, was the same.

    Call it only for jobs whose pictures need the check.
    """
    if one.kind != "image" or one.verdict == "passed" or one.verdict == before:
        return
    row = connection.execute(select(jobs).where(jobs.c.id == one.job)).mappings().one()
    said = f"Picture {one.image + 1} {SAID[one.verdict]}."
    _note(connection, row, "held", row["member"], row["member_name"], said, now)


def waiting(connection: Connection, guild: str, limit: int) -> list[Record]:
    """Return a guild's jobs with pictures that wait for a decision, the oldest first."""
    undecided = exists().where(
        pictures.c.job == jobs.c.id, pictures.c.kind == "image", pictures.c.verdict != "passed",
        pictures.c.reviewed == "",
    )  # fmt: skip
    theirs = (jobs.c.guild == guild, jobs.c.state == "finished", jobs.c.check.is_(True), jobs.c.deleted.is_(None))
    return records(connection, select(jobs).where(*theirs, undecided).order_by(jobs.c.id).limit(limit))


def review(connection: Connection, job: str, image: int, decision: str, member: Member, now: float) -> bool:
    """Record a moderator's decision about one image ("shown" or "hidden"), with an incident. False: nothing changed."""
    same = (pictures.c.job == job, pictures.c.image == image, pictures.c.kind == "image")
    changed = update(pictures).where(*same, pictures.c.reviewed != decision).values(reviewed=decision)
    if not connection.execute(changed).rowcount:
        return False
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one()
    incidents.decided(connection, job, f"Picture {image + 1} ", now)
    kind, did = ("approved", "shown") if decision == "shown" else ("denied", "kept hidden")
    _note(connection, row, kind, member.id, member.name, f"Picture {image + 1} is {did}.", now)
    return True


def _note(connection: Connection, job: RowMapping, kind: Kind, actor: str, name: str, said: str, now: float) -> None:
    incidents.note(connection, job["guild"], kind, actor, name, said, now, job["id"])
