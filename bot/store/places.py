"""Where jobs are shown: one row for each place of a job. Each function works inside its caller's transaction.

The answer is the message of the request itself; a notice is the new message that tells its author of the end; a direct
one lies in the conversation with the author. A row says whether the last word was shown there, or why it could not be.
Films are owed to nobody: they are noted so that they go with their job, and each has a role of its own here, numbered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, bindparam, or_, select, update

from bot.store import reads
from bot.store.records import Record
from bot.store.tables import jobs, places
from bot.views import Delivery, Place, PlaceKind, Role

SHOWN = 100  # undeliverable jobs of one member that are listed
FILM = "film"  # in front of a film's number
# Every end asks these, so they are built once: to build one takes longer than SQLite takes to run it.
_HERE = (places.c.job == bindparam("of"), places.c.role == bindparam("as"))
_ONE = select(places).where(*_HERE)
_BOOK = select(places).where(places.c.job == bindparam("of"), ~places.c.role.startswith(FILM)).order_by(places.c.role)
_DELIVERED = update(places).where(*_HERE).values(delivered=bindparam("at"), reason=bindparam("why"))


def add(connection: Connection, job: str, role: Role, place: Place) -> bool:
    """A further place of a job; False, and nothing changes, where it has one of that role."""
    if connection.execute(_of(select(places.c.job), job, role)).first() is not None:
        return False
    where = dict(place.where)
    row = {"kind": place.kind, "where": where, "message": where.get("message", ""), "reason": ""}
    connection.execute(places.insert().values(job=job, role=role, **row))
    return True


def place(connection: Connection, job: str, role: Role = "answer") -> Place | None:
    """One place of a job."""
    row = connection.execute(_ONE, {"of": job, "as": role}).mappings().first()
    return None if row is None else _delivery(row).place


def deliveries(connection: Connection, job: str) -> dict[Role, Delivery]:
    """All places of a job but its films, and what became of each."""
    return {one.role: one for one in map(_delivery, connection.execute(_BOOK, {"of": job}).mappings())}


def all_of(connection: Connection, job: str) -> list[tuple[str, Delivery]]:
    """Every place of a job, its films among them, by its role as it stands in the table."""
    rows = connection.execute(select(places).where(places.c.job == job).order_by(places.c.role)).mappings()
    return [(row["role"], _delivery(row)) for row in rows]


def films(connection: Connection, job: str) -> list[Delivery]:
    """The messages with a job's film, the oldest first."""
    rows = connection.execute(select(places).where(places.c.job == job, is_film()).order_by(places.c.delivered))
    return [_delivery(row) for row in rows.mappings()]


def add_film(connection: Connection, job: str, place: Place, now: float) -> bool:
    """A message with a job's film; False, and nothing is noted, where the job was deleted meanwhile."""
    kept = select(jobs.c.id).where(jobs.c.id == job, jobs.c.deleted.is_(None))
    if connection.execute(kept).first() is None:
        return False
    roles = connection.execute(select(places.c.role).where(places.c.job == job, is_film())).scalars()
    role = f"{FILM}{1 + max((int(one.removeprefix(FILM)) for one in roles), default=0)}"
    row = {"kind": place.kind, "where": dict(place.where), "message": place.where.get("message", "")}
    connection.execute(places.insert().values(job=job, role=role, delivered=now, reason="", **row))
    return True


def forget_film(connection: Connection, job: str, message: str) -> None:
    """That message is gone."""
    connection.execute(places.delete().where(places.c.job == job, places.c.message == message, is_film()))


def is_film() -> ColumnElement[bool]:
    """Of a row of places."""
    return places.c.role.startswith(FILM)


def undelivered(connection: Connection, kind: PlaceKind) -> list[tuple[Record, Place]]:
    """Jobs of one kind of place whose last word is still to be shown somewhere, oldest first, with their answer's
    place; over or not, but none that waits.
    """
    owing = select(places.c.job).where(places.c.kind == kind, places.c.delivered.is_(None))
    theirs = (places.c.role == "answer", jobs.c.id.in_(owing), jobs.c.state != "queued")
    joined = jobs.c.id == places.c.job
    asked = select(places.c.job, places.c.where).join(jobs, joined).where(*theirs)
    where = {row.job: dict(row.where) for row in connection.execute(asked)}
    rows = select(jobs).join(places, joined).where(*theirs).order_by(jobs.c.id)
    return [(one, Place(kind, where[one.id])) for one in reads.records(connection, rows)]


def moved(connection: Connection, job: str, where: Mapping[str, str], role: Role = "answer") -> None:
    """Merge into a place. An answer that was given up and came all the same still needs its last word."""
    row = connection.execute(_ONE, {"of": job, "as": role}).mappings().first()
    if row is not None:
        merged = {**row["where"], **where}
        values: dict[str, Any] = {"where": merged, "message": merged.get("message", "")}
        if role == "answer" and row["reason"] and values["message"] and not row["message"]:
            values |= {"reason": "", "delivered": None}
        connection.execute(update(places).where(_is(job, role)).values(**values))


def delivered(connection: Connection, job: str, now: float, role: Role = "answer", reason: str = "") -> None:
    """The last word was shown there, or with a `reason` it never can be."""
    connection.execute(_DELIVERED, {"of": job, "as": role, "at": now, "why": reason})


def lost(connection: Connection, job: str, reason: str, role: Role = "answer") -> None:
    """The place is gone, though its job is not over."""
    connection.execute(update(places).where(_is(job, role), places.c.delivered.is_(None)).values(reason=reason))


def undeliverable(connection: Connection, member: str) -> dict[str, str]:
    """A member's jobs whose last word could be shown nowhere, the newest first, each with why."""
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
    """The job that a message shows."""
    return connection.execute(select(places.c.job).where(places.c.message == message)).scalars().first()


def _is(job: str, role: Role) -> Any:
    return and_(places.c.job == job, places.c.role == role)


def _of(asked: Select[Any], job: str, role: Role) -> Select[Any]:
    return asked.where(_is(job, role))


def _delivery(row: RowMapping) -> Delivery:
    shown = Place(cast(PlaceKind, row["kind"]), dict(row["where"]))
    role = FILM if row["role"].startswith(FILM) else row["role"]
    return Delivery(cast(Role, role), shown, row["message"], row["delivered"], row["reason"])
