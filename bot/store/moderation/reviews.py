"""Verdicts of the picture check and decisions of moderators about pictures, with their incidents.

Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, bindparam, exists, select, update

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.incidents import IncidentKind
from bot.domain.texts import PICTURES_DELETED
from bot.store.jobs.queries import list_pictures
from bot.store.jobs.records import JobRecord, StoredPicture, load_records
from bot.store.moderation import incidents
from bot.store.schema.tables import jobs, pictures

_SELECT_CHECK = select(jobs.c.check, jobs.c.deleted).where(jobs.c.id == bindparam("job"))
VERDICT_TEXTS = {"flagged": "was flagged by the picture check", "unchecked": "could not be checked"}


def load_pictures(connection: Connection, job: str) -> tuple[bool, list[StoredPicture]]:
    """Return whether a job's pictures need the picture check before they are shown, and its pictures and ladders.

    Raises `UserError` (404) if they were deleted.
    """
    row = connection.execute(_SELECT_CHECK, {"job": job}).first()
    if row is not None and row.deleted is not None:
        raise UserError(PICTURES_DELETED, 404)
    return bool(row and row.check), list_pictures(connection, [job])


def find_same_pictures(connection: Connection, hashes: Sequence[str]) -> list[tuple[bool, StoredPicture]]:
    """Return the images of these contents in undeleted jobs, each with whether its job needs the check."""
    query = select(pictures, jobs.c.check).join(jobs, jobs.c.id == pictures.c.job)
    query = query.where(pictures.c.sha256.in_(hashes), pictures.c.kind == "image", jobs.c.deleted.is_(None))
    rows = [dict(row) for row in connection.execute(query).mappings()]
    return [(bool(row.pop("check")), StoredPicture(**row)) for row in rows]


def write_held_incident(connection: Connection, picture: StoredPicture, old_verdict: str | None, now: float) -> None:
    """Write an incident for an incoming picture that is held, unless `old_verdict`, its earlier verdict, was the same.

    Call it only for jobs whose pictures need the check.
    """
    if picture.kind != "image" or picture.verdict == "passed" or picture.verdict == old_verdict:
        return
    row = connection.execute(select(jobs).where(jobs.c.id == picture.job)).mappings().one()
    text = f"Picture {picture.image + 1} {VERDICT_TEXTS[picture.verdict]}."
    _write_incident(connection, row, "held", row["member"], row["member_name"], text, now)


def list_waiting_jobs(connection: Connection, guild: str, limit: int) -> list[JobRecord]:
    """Return a guild's jobs with pictures that wait for a decision, the oldest first."""
    has_undecided = exists().where(
        pictures.c.job == jobs.c.id,
        pictures.c.kind == "image",
        pictures.c.verdict != "passed",
        pictures.c.reviewed == "",
    )
    conditions = (jobs.c.guild == guild, jobs.c.state == "finished", jobs.c.check.is_(True), jobs.c.deleted.is_(None))
    return load_records(connection, select(jobs).where(*conditions, has_undecided).order_by(jobs.c.id).limit(limit))


def review_picture(connection: Connection, job: str, image: int, decision: str, member: Member, now: float) -> bool:
    """Record a moderator's decision about one image ("shown" or "hidden"), with an incident. False: nothing changed."""
    conditions = (pictures.c.job == job, pictures.c.image == image, pictures.c.kind == "image")
    statement = update(pictures).where(*conditions, pictures.c.reviewed != decision).values(reviewed=decision)
    if not connection.execute(statement).rowcount:
        return False
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one()
    incidents.close_held_incident(connection, job, f"Picture {image + 1} ", now)
    kind, outcome = ("approved", "shown") if decision == "shown" else ("denied", "kept hidden")
    _write_incident(connection, row, kind, member.id, member.name, f"Picture {image + 1} is {outcome}.", now)
    return True


def _write_incident(
    connection: Connection, job: RowMapping, kind: IncidentKind, actor: str, name: str, text: str, now: float
) -> None:
    incidents.write_incident(connection, job["guild"], kind, actor, name, text, now, job["id"])
