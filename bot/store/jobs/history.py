"""Read queries for a member's history: jobs by filter, favourites, and where each job was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select

from bot.domain.dto import Destination, DestinationKind
from bot.domain.job_states import END_STATES, OPEN_STATES
from bot.store.jobs.destinations import is_film
from bot.store.jobs.queries import load_records
from bot.store.jobs.records import JobRecord
from bot.store.schema.tables import destinations, favourites, jobs

HistoryFilter = Literal["all", "favourites", "waiting", "unshown"]


def list_history(
    connection: Connection, member: str, history_filter: HistoryFilter, limit: int, offset: int, thread: str = ""
) -> tuple[list[JobRecord], int]:
    """Return a page of a member's jobs, the newest first, and their total. Favourites include others' public jobs, and
    those of the private `thread` where the member is.
    """
    condition = _filter_condition(member, history_filter, thread)
    total = int(connection.execute(select(func.count()).select_from(jobs).where(condition)).scalar_one())
    query = select(jobs).where(condition).order_by(jobs.c.id.desc()).limit(limit).offset(offset)
    return load_records(connection, query), total


def _filter_condition(member: str, history_filter: HistoryFilter, thread: str) -> ColumnElement[bool]:
    is_own = and_(jobs.c.member == member, jobs.c.deleted.is_(None))
    if history_filter == "waiting":
        return and_(is_own, jobs.c.state.in_(OPEN_STATES))
    if history_filter == "favourites":
        is_favourite = exists().where(favourites.c.job == jobs.c.id, favourites.c.member == member)
        return and_(is_favourite, or_(is_own, _is_public(thread)))
    if history_filter == "unshown":
        has_failure = exists().where(destinations.c.job == jobs.c.id, destinations.c.reason != "")
        delivered_conditions = (destinations.c.reason == "", destinations.c.delivered.is_not(None), ~is_film())
        is_delivered = exists().where(destinations.c.job == jobs.c.id, *delivered_conditions)
        return and_(is_own, jobs.c.state.in_(END_STATES), has_failure, ~is_delivered)
    return is_own


def _is_public(thread: str) -> ColumnElement[bool]:
    """Return the condition for jobs that are not private, as seen from a private thread (empty: from none)."""
    return and_(jobs.c.private.is_(False), jobs.c.thread.in_({"", thread}))


def list_nearby_jobs(
    connection: Connection, member: str, guild: str, channel: str, limit: int, thread: str = ""
) -> list[JobRecord]:
    """Return the newest of a member's jobs and a channel's public jobs together, with those of a private `thread`.

    Autocomplete calls it at each keystroke, so it makes two short scans, each along its own index.
    """
    is_public = and_(jobs.c.guild == guild, jobs.c.channel == channel, _is_public(thread))
    newest_by_id: dict[str, JobRecord] = {}
    for condition in (jobs.c.member == member, is_public):
        query = select(jobs).where(condition, jobs.c.deleted.is_(None)).order_by(jobs.c.id.desc()).limit(limit)
        newest_by_id |= {job_record.id: job_record for job_record in load_records(connection, query)}
    return [newest_by_id[job] for job in sorted(newest_by_id, reverse=True)[:limit]]


def list_open_jobs(connection: Connection, member: str, limit: int) -> list[JobRecord]:
    """Return a member's open jobs, the newest first."""
    query = select(jobs).where(jobs.c.member == member, jobs.c.state.in_(OPEN_STATES))
    return load_records(connection, query.order_by(jobs.c.id.desc()).limit(limit))


def find_destinations(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[Destination | None, str]]:
    """Return for each job its destination, delivered or not, and why no delivery succeeded."""
    rows_by_job: dict[str, list[Any]] = {}
    for row in connection.execute(
        select(destinations).where(destinations.c.job.in_(ids), ~is_film()).order_by(destinations.c.role)
    ):
        rows_by_job.setdefault(row.job, []).append(row)
    return {job: _choose_destination(rows) for job, rows in rows_by_job.items()}


def _choose_destination(rows: Sequence[Any]) -> tuple[Destination | None, str]:
    delivered_row = next((row for row in rows if not row.reason and row.delivered is not None), None)
    best_row = delivered_row or rows[0]
    reason = "" if delivered_row else " ".join(row.reason for row in rows if row.reason)
    return Destination(cast(DestinationKind, best_row.kind), dict(best_row.where)), reason


def list_liked_images(connection: Connection, member: str, ids: Sequence[str]) -> dict[str, list[int]]:
    """Return a member's favourite images among these jobs."""
    query = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member, favourites.c.job.in_(ids))
    by_job: dict[str, list[int]] = {}
    for row in connection.execute(query.order_by(favourites.c.image)):
        by_job.setdefault(row.job, []).append(row.image)
    return by_job
