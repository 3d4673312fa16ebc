"""What the picture check and the moderators said of a picture, and the note of it for the moderators.

Each works inside its caller's transaction.
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
    """Whether a job's pictures pass the picture check before they are shown, and its pictures and ladders.

    Raises `Refused` (404) where they were deleted.
    """
    row = connection.execute(_CHECK, {"job": job}).first()
    if row is not None and row.deleted is not None:
        raise Refused(DELETED, 404)
    return bool(row and row.check), stored(connection, [job])


def same(connection: Connection, contents: Sequence[str]) -> list[tuple[bool, Stored]]:
    """The images of these contents in jobs that were not deleted, each with whether its job's pass the check."""
    asked = select(pictures, jobs.c.check).join(jobs, jobs.c.id == pictures.c.job)
    asked = asked.where(pictures.c.sha256.in_(contents), pictures.c.kind == "image", jobs.c.deleted.is_(None))
    rows = [dict(row) for row in connection.execute(asked).mappings()]
    return [(bool(row.pop("check")), Stored(**row)) for row in rows]


def note_held(connection: Connection, one: Stored, before: str | None, now: float) -> None:
    """An incident for a picture that comes in and is held; none where the same was noted `before` it came again.

    Only for jobs whose pictures are to pass the check.
    """
    if one.kind != "image" or one.verdict == "passed" or one.verdict == before:
        return
    row = connection.execute(select(jobs).where(jobs.c.id == one.job)).mappings().one()
    said = f"Picture {one.image + 1} {SAID[one.verdict]}."
    _note(connection, row, "held", row["member"], row["member_name"], said, now)


def waiting(connection: Connection, guild: str, limit: int) -> list[Record]:
    """The jobs of a guild with pictures that nobody has decided about, the oldest first."""
    undecided = exists().where(
        pictures.c.job == jobs.c.id, pictures.c.kind == "image", pictures.c.verdict != "passed",
        pictures.c.reviewed == "",
    )  # fmt: skip
    theirs = (jobs.c.guild == guild, jobs.c.state == "finished", jobs.c.check.is_(True), jobs.c.deleted.is_(None))
    return records(connection, select(jobs).where(*theirs, undecided).order_by(jobs.c.id).limit(limit))


def review(connection: Connection, job: str, image: int, decision: str, member: Member, now: float) -> bool:
    """A moderator's decision about one image, "shown" or "hidden", with its incident. False: nothing changed."""
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
