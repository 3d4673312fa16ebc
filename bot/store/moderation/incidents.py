"""Incidents in SQL: write, read, close. Each function works inside its caller's transaction.

Nobody can flood the table: kinds that a member can repeat are limited per hour, and each guild has a maximum. Beyond
it, the oldest closed incidents are deleted first, and those that wait for a moderator last.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, case, exists, func, select, update

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.incidents import MAX_DETAIL, NEED_DECISION, REPEATABLE, Incident, IncidentKind
from bot.domain.texts import PICTURES_DELETED, clean_text, shorten
from bot.store.jobs.queries import list_pictures
from bot.store.jobs.records import JobRecord, StoredPicture, load_records
from bot.store.schema.tables import incidents as table
from bot.store.schema.tables import jobs, pictures

MAX_PER_GUILD = 2000  # per guild
# most per hour of one member and one repeatable kind
HOURLY_LIMIT = 5
HOUR = 3600.0
# most per day of one member
DAILY_REPORTS = 10
DAY = 86_400.0
NAME_LENGTH = 128


def write_incident(
    connection: Connection, guild: str, kind: IncidentKind, actor: str, name: str, text: str, now: float, job: str = ""
) -> int | None:
    """Write an incident and return its number; None if the member reached the hourly limit of its kind."""
    conditions = (table.c.guild == guild, table.c.kind == kind, table.c.actor == actor)
    if kind in REPEATABLE and _count_incidents(connection, *conditions, table.c.at > now - HOUR) >= HOURLY_LIMIT:
        return None
    values = {
        "guild": guild,
        "at": now,
        "kind": kind,
        "actor": actor,
        "actor_name": clean_text(name)[:NAME_LENGTH],
        "job": job,
        "said": shorten(text, MAX_DETAIL),
        "closed": None if kind in NEED_DECISION else now,
    }
    number = connection.execute(table.insert().values(**values).returning(table.c.id)).scalar_one()
    _prune_incidents(connection, guild)
    return int(number)


def _prune_incidents(connection: Connection, guild: str) -> None:
    excess = _count_incidents(connection, table.c.guild == guild) - MAX_PER_GUILD
    if excess > 0:
        is_open = case((table.c.closed.is_(None), 1), else_=0)
        oldest = select(table.c.id).where(table.c.guild == guild).order_by(is_open, table.c.id).limit(excess)
        connection.execute(table.delete().where(table.c.id.in_(oldest)))


def write_report(connection: Connection, guild: str, actor: str, name: str, text: str, now: float, job: str) -> int:
    """Write a member's report of a job. Raises `UserError` (429) for a second one of the job, or too many in a day."""
    conditions = (table.c.kind == "report", table.c.actor == actor)
    if _count_incidents(connection, table.c.guild == guild, *conditions, table.c.job == job):
        raise UserError("You have reported this already: the moderators have it.", 429)
    recent_times = [row.at for row in connection.execute(select(table.c.at).where(*conditions, table.c.at > now - DAY))]
    if len(recent_times) >= DAILY_REPORTS:
        raise UserError(
            f"At most {DAILY_REPORTS} reports in 24 hours, and you have made {len(recent_times)}. If it is urgent, "
            "write to a "
            "moderator.",
            429,
            retry_at=min(recent_times) + DAY,
        )
    number = write_incident(connection, guild, "report", actor, name, text, now, job)
    assert number is not None, "reports are bounded above"
    return number


def list_incidents(connection: Connection, guild: str | None, limit: int, *, open_only: bool = False) -> list[Incident]:
    """Return the newest incidents first, of one guild or of all. `open_only`: only those that wait for a moderator."""
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if guild is not None:
        query = query.where(table.c.guild == guild)
    if open_only:
        query = query.where(table.c.closed.is_(None))
    return [_to_incident(row) for row in connection.execute(query).mappings()]


def close_incident(connection: Connection, guild: str, number: int, actor: tuple[str, str], now: float) -> Incident:
    """Close an incident and record who closed it; a closed one stays unchanged. Raises `UserError` (404)."""
    conditions = (table.c.id == number, table.c.guild == guild)
    row = connection.execute(select(table).where(*conditions)).mappings().first()
    if row is None:
        raise UserError(f"There is no incident {number} here.", 404)
    if row["closed"] is None:
        row = connection.execute(update(table).where(*conditions).values(closed=now).returning(table)).mappings().one()
        write_incident(connection, guild, "closed", *actor, f"number {number}", now, row["job"])
    return _to_incident(row)


def close_held_incident(connection: Connection, job: str, text_prefix: str, now: float) -> None:
    """Close the "held" incident whose text begins with `text_prefix`: a moderator has decided."""
    conditions = (
        table.c.job == job,
        table.c.kind == "held",
        table.c.said.startswith(text_prefix),
        table.c.closed.is_(None),
    )
    connection.execute(update(table).where(*conditions).values(closed=now))


def close_incidents(connection: Connection, job_ids: list[str], now: float) -> bool:
    """Close the open incidents of these jobs, which are deleted. Return True if there was one."""
    statement = update(table).where(table.c.job.in_(job_ids), table.c.closed.is_(None))
    return connection.execute(statement.values(closed=now)).rowcount > 0


def _count_incidents(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())


def _to_incident(row: RowMapping) -> Incident:
    names = ("id", "guild", "at", "kind", "actor", "actor_name", "job", "said", "closed")
    return Incident(*(row[name] for name in names))


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
    close_held_incident(connection, job, f"Picture {image + 1} ", now)
    kind, outcome = ("approved", "shown") if decision == "shown" else ("denied", "kept hidden")
    _write_incident(connection, row, kind, member.id, member.name, f"Picture {image + 1} is {outcome}.", now)
    return True


def _write_incident(
    connection: Connection, job: RowMapping, kind: IncidentKind, actor: str, name: str, text: str, now: float
) -> None:
    write_incident(connection, job["guild"], kind, actor, name, text, now, job["id"])
