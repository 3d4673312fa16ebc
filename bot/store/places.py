"""Destinations of jobs: one row for each message where a job is shown. Works inside its caller's transaction.

Roles: `answer` is the reply to the request, `notice` a new message about the end, `direct` a message in the author's
DMs. A row says whether the final result was delivered there, or why it could not be. Film messages have numbered roles
(`film1`, …). They are not owed; they are recorded so that they are deleted with their job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, bindparam, or_, select, update

from bot.store import reads
from bot.store.records import Record
from bot.store.tables import jobs, places
from bot.views import Delivery, Place, PlaceKind, Role

SHOWN = 100  # most undeliverable jobs of one member in a list
FILM = "film"  # role prefix, before the number
# Every ended job runs these. They are built once: building takes longer than SQLite takes to run them.
_HERE = (places.c.job == bindparam("of"), places.c.role == bindparam("as"))
_ONE = select(places).where(*_HERE)
_BOOK = select(places).where(places.c.job == bindparam("of"), ~places.c.role.startswith(FILM)).order_by(places.c.role)
_DELIVERED = update(places).where(*_HERE).values(delivered=bindparam("at"), reason=bindparam("why"))


def add(connection: Connection, job: str, role: Role, place: Place) -> bool:
    """Add a destination to a job; False, and nothing changes, if it has one of that role."""
    if connection.execute(_of(select(places.c.job), job, role)).first() is not None:
        return False
    where = dict(place.where)
    row = {"kind": place.kind, "where": where, "message": where.get("message", ""), "reason": ""}
    connection.execute(places.insert().values(job=job, role=role, **row))
    return True


def place(connection: Connection, job: str, role: Role = "answer") -> Place | None:
    """Return one destination of a job, or None."""
    row = connection.execute(_ONE, {"of": job, "as": role}).mappings().first()
    return None if row is None else _delivery(row).place


def deliveries(connection: Connection, job: str) -> dict[Role, Delivery]:
    """Return a job's destinations and their delivery state, without films."""
    return {one.role: one for one in map(_delivery, connection.execute(_BOOK, {"of": job}).mappings())}


def all_of(connection: Connection, job: str) -> list[tuple[str, Delivery]]:
    """Return every destination of a job, films included, each with its stored role."""
    rows = connection.execute(select(places).where(places.c.job == job).order_by(places.c.role)).mappings()
    return [(row["role"], _delivery(row)) for row in rows]


def films(connection: Connection, job: str) -> list[Delivery]:
    """Return the messages with a job's film, the oldest first."""
    rows = connection.execute(select(places).where(places.c.job == job, is_film()).order_by(places.c.delivered))
    return [_delivery(row) for row in rows.mappings()]


def add_film(connection: Connection, job: str, place: Place, now: float) -> bool:
    """Record a message with a job's film; False, and nothing changes, if the job was deleted meanwhile."""
    kept = select(jobs.c.id).where(jobs.c.id == job, jobs.c.deleted.is_(None))
    if connection.execute(kept).first() is None:
        return False
    roles = connection.execute(select(places.c.role).where(places.c.job == job, is_film())).scalars()
    role = f"{FILM}{1 + max((int(one.removeprefix(FILM)) for one in roles), default=0)}"
    row = {"kind": place.kind, "where": dict(place.where), "message": place.where.get("message", "")}
    connection.execute(places.insert().values(job=job, role=role, delivered=now, reason="", **row))
    return True


def forget_film(connection: Connection, job: str, message: str) -> None:
    """Drop the row of a deleted film message."""
    connection.execute(places.delete().where(places.c.job == job, places.c.message == message, is_film()))


def is_film() -> ColumnElement[bool]:
    """Return the SQL condition that a row of `places` is a film."""
    return places.c.role.startswith(FILM)


def undelivered(connection: Connection, kind: PlaceKind) -> list[tuple[Record, Place]]:
    """Return jobs with an undelivered destination of this kind, oldest first, each with its answer's destination.

    Includes sent, running and ended jobs, but no waiting ones.
    """
    owing = select(places.c.job).where(places.c.kind == kind, places.c.delivered.is_(None))
    theirs = (places.c.role == "answer", jobs.c.id.in_(owing), jobs.c.state != "queued")
    joined = jobs.c.id == places.c.job
    asked = select(places.c.job, places.c.where).join(jobs, joined).where(*theirs)
    where = {row.job: dict(row.where) for row in connection.execute(asked)}
    rows = select(jobs).join(places, joined).where(*theirs).order_by(jobs.c.id)
    return [(one, Place(kind, where[one.id])) for one in reads.records(connection, rows)]


def moved(connection: Connection, job: str, where: Mapping[str, str], role: Role = "answer") -> None:
    """Merge fields into a destination. An answer that was given up but got a message still needs its final result."""
    row = connection.execute(_ONE, {"of": job, "as": role}).mappings().first()
    if row is not None:
        merged = {**row["where"], **where}
        values: dict[str, Any] = {"where": merged, "message": merged.get("message", "")}
        if role == "answer" and row["reason"] and values["message"] and not row["message"]:
            values |= {"reason": "", "delivered": None}
        connection.execute(update(places).where(_is(job, role)).values(**values))


def delivered(connection: Connection, job: str, now: float, role: Role = "answer", reason: str = "") -> None:
    """Mark a destination as delivered, or with a `reason` as undeliverable."""
    connection.execute(_DELIVERED, {"of": job, "as": role, "at": now, "why": reason})


def lost(connection: Connection, job: str, reason: str, role: Role = "answer") -> None:
    """Record why an undelivered destination is lost, while its job may still run."""
    connection.execute(update(places).where(_is(job, role), places.c.delivered.is_(None)).values(reason=reason))


def undeliverable(connection: Connection, member: str) -> dict[str, str]:
    """Return a member's undeliverable jobs with the reasons, the newest first."""
    answer, direct, notice = places.alias("answer"), places.alias("direct"), places.alias("notice")
    asked = (
        select(jobs.c.id, answer.c.reason.label("first"), direct.c.reason.label("then"))
        .join(answer, and_(answer.c.job == jobs.c.id, answer.c.role == "answer", answer.c.reason != ""))
        .join(direct, and_(direct.c.job == jobs.c.id, direct.c.role == "direct", direct.c.reason != ""))
        .outerjoin(notice, and_(notice.c.job == jobs.c.id, notice.c.role == "notice"))
        .where(jobs.c.member == member, or_(notice.c.job.is_(None), notice.c.reason != ""))
    )
    rows = connection.execute(asked.order_by(jobs.c.id.desc()).limit(SHOWN))
    return {row.id: f"{row.first} {row.then}" for row in rows}


def job_at(connection: Connection, message: str) -> str | None:
    """Return the job that a message shows, or None."""
    return connection.execute(select(places.c.job).where(places.c.message == message)).scalars().first()


def _is(job: str, role: Role) -> Any:
    return and_(places.c.job == job, places.c.role == role)


def _of(asked: Select[Any], job: str, role: Role) -> Select[Any]:
    return asked.where(_is(job, role))


def _delivery(row: RowMapping) -> Delivery:
    shown = Place(cast(PlaceKind, row["kind"]), dict(row["where"]))
    role = FILM if row["role"].startswith(FILM) else row["role"]
    return Delivery(cast(Role, role), shown, row["message"], row["delivered"], row["reason"])
