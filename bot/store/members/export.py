"""Reads all data from a member's own actions, page by page, for an export. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from bot.domain.feature import load_hooks
from bot.store.jobs.queries import list_pictures
from bot.store.jobs.records import JobRecord, StoredPicture, load_records
from bot.store.members.preferences import load_preferences
from bot.store.schema.tables import amendments, destinations, favourites, incidents, jobs

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
