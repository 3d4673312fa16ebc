"""Members' preferences and favourites in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select

from bot.domain.feature import load_hooks, merge_rows
from bot.store.jobs.queries import list_pictures
from bot.store.jobs.records import JobRecord, StoredPicture, load_records
from bot.store.schema.tables import amendments, destinations, favourites, incidents, jobs
from bot.store.schema.tables import preferences as chosen

MAX_FAVOURITES = 500  # most favourites in a list
_SELECT_PREFERENCES = select(chosen.c["values"]).where(chosen.c.member == bindparam("member"))


def load_preferences(connection: Connection, member: str) -> dict[str, object]:
    """Return the preferences as stored; empty if there are none."""
    stored_values = connection.execute(_SELECT_PREFERENCES, {"member": member}).scalar_one_or_none()
    return dict(stored_values or {})


def update_preferences(connection: Connection, member: str, changes: Mapping[str, object]) -> dict[str, object]:
    """Change some of a member's preferences, and return all of them."""
    values = {**load_preferences(connection, member), **changes}
    connection.execute(chosen.delete().where(chosen.c.member == member))
    connection.execute(chosen.insert().values({"member": member, "values": values}))
    return values


def toggle_favourite(connection: Connection, member: str, job: str, image: int, now: float) -> bool:
    """Toggle a favourite; True if it is one now."""
    conditions = (favourites.c.member == member, favourites.c.job == job, favourites.c.image == image)
    if connection.execute(favourites.delete().where(*conditions)).rowcount:
        return False
    connection.execute(favourites.insert().values(member=member, job=job, image=image, at=now))
    return True


def list_favourites(connection: Connection, member: str) -> list[tuple[str, int]]:
    """Return a member's favourites as (job, image), the newest first."""
    query = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member)
    rows = connection.execute(query.order_by(favourites.c.at.desc()).limit(MAX_FAVOURITES))
    return [(row.job, row.image) for row in rows]


def load_flag_aliases(connection: Connection, member: str) -> dict[str, str]:
    """Return the flags of a member's own that features keep, and what each stands for."""
    return merge_rows({}, *(load(connection, member) for load in load_hooks("load_flag_aliases")))


PAGE_SIZE = 200  # jobs per page
EXPORTED_FIELDS = ("guild", "channel", "message")  # exported fields of a destination; never tokens


@dataclass(frozen=True)
class MemberChoices:
    """A member's data that belongs to no job: preferences, favourites as (job, image, time), reports as
    (job, time, text), changes of running jobs as (job, time, text), and what features keep, by its name.
    """

    preferences: dict[str, object]
    favourites: list[tuple[str, int, float]]
    reports: list[tuple[str, float, str]]
    amendments: list[tuple[str, float, str]]
    added: dict[str, Any]


def read_choices(connection: Connection, member: str) -> MemberChoices:
    """Read a member's choices. Favourites may be other members' pictures, so only ids are exported."""
    favourites_query = select(favourites.c.job, favourites.c.image, favourites.c.at).where(
        favourites.c.member == member
    )
    reports_query = select(incidents.c.job, incidents.c.at, incidents.c.said)
    own_reports_query = reports_query.where(incidents.c.actor == member, incidents.c.kind == "report").order_by(
        incidents.c.id
    )
    return MemberChoices(
        load_preferences(connection, member),
        [(row.job, row.image, row.at) for row in connection.execute(favourites_query.order_by(favourites.c.at))],
        [(row.job, row.at, row.said) for row in connection.execute(own_reports_query)],
        [(row.job, row.at, row.text) for row in connection.execute(_select_amendments(member))],
        {name: rows for export in load_hooks("export_member") for name, rows in export(connection, member).items()},
    )


def _select_amendments(member: str) -> Select[*tuple[Any, ...]]:
    """Select what the member changed in running jobs, their own and others'."""
    query = select(amendments.c.job, amendments.c.at, amendments.c.text).where(amendments.c.member == member)
    return query.order_by(amendments.c.at, amendments.c.number)


def count_jobs(connection: Connection, member: str) -> int:
    """Count the member's jobs that were not deleted."""
    conditions = (jobs.c.member == member, jobs.c.deleted.is_(None))
    return int(connection.execute(select(func.count()).select_from(jobs).where(*conditions)).scalar_one())


def read_page(
    connection: Connection, member: str, after_job: str
) -> tuple[list[JobRecord], list[StoredPicture], dict[str, list[Any]]]:
    """Return the member's next jobs after `after_job` in order of arrival, their pictures, and destinations by job."""
    query = select(jobs).where(jobs.c.member == member, jobs.c.id > after_job, jobs.c.deleted.is_(None))
    page_records = load_records(connection, query.order_by(jobs.c.id).limit(PAGE_SIZE))
    ids = [job_record.id for job_record in page_records]
    return page_records, list_pictures(connection, ids), _read_destinations(connection, ids)


def _read_destinations(connection: Connection, ids: Sequence[str]) -> dict[str, list[Any]]:
    by_job: dict[str, list[Any]] = {}
    query = select(destinations).where(destinations.c.job.in_(ids)).order_by(destinations.c.job, destinations.c.role)
    for row in connection.execute(query):
        address = {name: row.where[name] for name in EXPORTED_FIELDS if row.where.get(name)}
        exported = {"as": row.role, "kind": row.kind, **address, "shown": row.delivered, "reason": row.reason}
        by_job.setdefault(row.job, []).append(exported)
    return by_job
