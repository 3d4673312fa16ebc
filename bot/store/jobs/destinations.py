"""Destinations of jobs: one row for each message where a job is shown. Works inside its caller's transaction.

Roles: `answer` is the reply to the request, `notice` a new message about the end, `direct` a message in the author's
DMs. A row says whether the final result was delivered there, or why it could not be. Film messages have numbered roles
(`film1`, …). No job waits for them; they are recorded so that they are deleted with their job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, or_, select, update

from bot.domain.dto import Delivery, DeliveryRole, Destination, DestinationKind
from bot.store.jobs.records import JobRecord, load_records
from bot.store.schema.tables import destinations, jobs

MAX_UNDELIVERABLE = 100  # most undeliverable jobs of one member in a list
FILM = "film"  # role prefix, before the number
# Every ended job runs these. They are built once: building takes longer than SQLite takes to run them.
_BY_JOB_AND_ROLE = (destinations.c.job == bindparam("of"), destinations.c.role == bindparam("as"))
_SELECT_ONE = select(destinations).where(*_BY_JOB_AND_ROLE)
_SELECT_WITHOUT_FILMS = (
    select(destinations)
    .where(destinations.c.job == bindparam("of"), ~destinations.c.role.startswith(FILM))
    .order_by(destinations.c.role)
)
_MARK_DELIVERED = (
    update(destinations).where(*_BY_JOB_AND_ROLE).values(delivered=bindparam("at"), reason=bindparam("why"))
)


def add_destination(connection: Connection, job: str, role: DeliveryRole, destination: Destination) -> bool:
    """Add a destination to a job; False if it has one of that role, and then nothing changes."""
    if get_destination(connection, job, role) is not None:
        return False
    _insert_row(connection, job, role, destination)
    return True


def _insert_row(
    connection: Connection, job: str, role: str, destination: Destination, delivered: float | None = None
) -> None:
    address = dict(destination.address)
    row = {"kind": destination.kind, "where": address, "message": address.get("message", ""), "reason": ""}
    connection.execute(destinations.insert().values(job=job, role=role, delivered=delivered, **row))


def get_destination(connection: Connection, job: str, role: DeliveryRole = "answer") -> Destination | None:
    """Return one destination of a job, or None."""
    row = connection.execute(_SELECT_ONE, {"of": job, "as": role}).mappings().first()
    return None if row is None else _to_delivery(row).destination


def list_deliveries(connection: Connection, job: str) -> dict[DeliveryRole, Delivery]:
    """Return a job's destinations and their delivery state, without films."""
    rows = connection.execute(_SELECT_WITHOUT_FILMS, {"of": job}).mappings()
    return {delivery.role: delivery for delivery in map(_to_delivery, rows)}


def list_all_deliveries(connection: Connection, job: str) -> list[tuple[str, Delivery]]:
    """Return every destination of a job, films included, each with its stored role."""
    query = select(destinations).where(destinations.c.job == job).order_by(destinations.c.role)
    return [(row["role"], _to_delivery(row)) for row in connection.execute(query).mappings()]


def list_films(connection: Connection, job: str) -> list[Delivery]:
    """Return the messages with a job's film, the oldest first."""
    query = select(destinations).where(destinations.c.job == job, is_film()).order_by(destinations.c.delivered)
    return [_to_delivery(row) for row in connection.execute(query).mappings()]


def add_film(connection: Connection, job: str, destination: Destination, now: float) -> bool:
    """Record a message with a job's film; False if the job was deleted meanwhile, and then nothing changes."""
    undeleted_query = select(jobs.c.id).where(jobs.c.id == job, jobs.c.deleted.is_(None))
    if connection.execute(undeleted_query).first() is None:
        return False
    roles = connection.execute(select(destinations.c.role).where(destinations.c.job == job, is_film())).scalars()
    role = f"{FILM}{1 + max((int(film_role.removeprefix(FILM)) for film_role in roles), default=0)}"
    _insert_row(connection, job, role, destination, now)
    return True


def delete_film(connection: Connection, job: str, message: str) -> None:
    """Drop the row of a deleted film message."""
    is_message = (destinations.c.job == job, destinations.c.message == message, is_film())
    connection.execute(destinations.delete().where(*is_message))


def is_film() -> ColumnElement[bool]:
    """Return the SQL condition that a row of `destinations` is a film."""
    return destinations.c.role.startswith(FILM)


def list_undelivered(connection: Connection, kind: DestinationKind) -> list[tuple[JobRecord, Destination]]:
    """Return jobs with an undelivered destination of this kind, oldest first, each with its answer's destination.

    Includes sent, running and ended jobs, but no waiting ones.
    """
    owing_query = select(destinations.c.job).where(destinations.c.kind == kind, destinations.c.delivered.is_(None))
    conditions = (destinations.c.role == "answer", jobs.c.id.in_(owing_query), jobs.c.state != "queued")
    is_same_job = jobs.c.id == destinations.c.job
    query = select(destinations.c.job, destinations.c.where).join(jobs, is_same_job).where(*conditions)
    addresses = {row.job: dict(row.where) for row in connection.execute(query)}
    rows = select(jobs).join(destinations, is_same_job).where(*conditions).order_by(jobs.c.id)
    return [(job_record, Destination(kind, addresses[job_record.id])) for job_record in load_records(connection, rows)]


def update_destination(
    connection: Connection, job: str, fields: Mapping[str, str], role: DeliveryRole = "answer"
) -> None:
    """Merge fields into a destination. An answer that counts as lost but gets a message still needs its result."""
    row = connection.execute(_SELECT_ONE, {"of": job, "as": role}).mappings().first()
    if row is not None:
        new_address = {**row["where"], **fields}
        values: dict[str, Any] = {"where": new_address, "message": new_address.get("message", "")}
        if role == "answer" and row["reason"] and values["message"] and not row["message"]:
            values |= {"reason": "", "delivered": None}
        connection.execute(update(destinations).where(_has_role(job, role)).values(**values))


def mark_delivered(
    connection: Connection, job: str, now: float, role: DeliveryRole = "answer", reason: str = ""
) -> None:
    """Mark a destination as delivered, or with a `reason` as undeliverable."""
    connection.execute(_MARK_DELIVERED, {"of": job, "as": role, "at": now, "why": reason})


def mark_lost(connection: Connection, job: str, reason: str, role: DeliveryRole = "answer") -> None:
    """Record why an undelivered destination is lost, while its job may still run."""
    connection.execute(
        update(destinations).where(_has_role(job, role), destinations.c.delivered.is_(None)).values(reason=reason)
    )


def list_undeliverable(connection: Connection, member: str) -> dict[str, str]:
    """Return a member's undeliverable jobs with the reasons, the newest first."""
    answer = destinations.alias("answer")
    direct = destinations.alias("direct")
    notice = destinations.alias("notice")
    query = (
        select(jobs.c.id, answer.c.reason.label("first"), direct.c.reason.label("then"))
        .join(answer, and_(answer.c.job == jobs.c.id, answer.c.role == "answer", answer.c.reason != ""))
        .join(direct, and_(direct.c.job == jobs.c.id, direct.c.role == "direct", direct.c.reason != ""))
        .outerjoin(notice, and_(notice.c.job == jobs.c.id, notice.c.role == "notice"))
        .where(jobs.c.member == member, or_(notice.c.job.is_(None), notice.c.reason != ""))
    )
    rows = connection.execute(query.order_by(jobs.c.id.desc()).limit(MAX_UNDELIVERABLE))
    return {row.id: f"{row.first} {row.then}" for row in rows}


def find_job(connection: Connection, message: str) -> str | None:
    """Return the job that a message shows, or None."""
    return connection.execute(select(destinations.c.job).where(destinations.c.message == message)).scalars().first()


def _has_role(job: str, role: DeliveryRole) -> Any:
    return and_(destinations.c.job == job, destinations.c.role == role)


def _to_delivery(row: RowMapping) -> Delivery:
    destination = Destination(cast(DestinationKind, row["kind"]), dict(row["where"]))
    role = FILM if row["role"].startswith(FILM) else row["role"]
    return Delivery(cast(DeliveryRole, role), destination, row["message"], row["delivered"], row["reason"])
