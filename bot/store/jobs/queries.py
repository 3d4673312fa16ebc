"""Read queries: jobs by id, state, key and filter, their pictures, interpolations, history, and counts for metrics.

Every function works inside its caller's transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import BindParameter, ColumnElement, Connection, and_, bindparam, exists, func, or_, select

from bot.domain.dto import Destination, DestinationKind
from bot.domain.job_states import ACTIVE_STATES, END_STATES, OPEN_STATES, JobState, is_end
from bot.policy.fair_queue import Account, WaitingJob
from bot.store.jobs.destinations import is_film
from bot.store.jobs.records import AuditEntry, JobRecord, StoredPicture, decode_audit_entry, load_records
from bot.store.schema.tables import accounts, audit_lines, destinations, favourites, jobs, models, pictures
from engine.contract import Interpolation, MalformedMessage, ModelProfile, Recipe, decode

log = logging.getLogger(__name__)

_COUNT_EARLIER = (  # run at each admission
    select(func.count())
    .select_from(jobs)
    .where(jobs.c.account == bindparam("account"), jobs.c.state == "queued", jobs.c.id < bindparam("job"))
)
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_SELECT_JOBS = select(jobs).where(jobs.c.id.in_(_IDS))  # this and the next run at each view of a job
_SELECT_PICTURES = (
    select(pictures).where(pictures.c.job.in_(_IDS)).order_by(pictures.c.job, pictures.c.image, pictures.c.kind)
)


def list_by_key(connection: Connection, key: str) -> list[JobRecord]:
    """Return the jobs that an idempotency key made, in their order."""
    return load_records(connection, select(jobs).where(jobs.c.key == key).order_by(jobs.c.ordinal))


def list_newest(connection: Connection, guild: str | None, limit: int) -> list[JobRecord]:
    """Return undeleted jobs in any state, the newest first."""
    query = select(jobs).where(jobs.c.deleted.is_(None)).order_by(jobs.c.id.desc()).limit(limit)
    return load_records(connection, query if guild is None else query.where(jobs.c.guild == guild))


def list_active(connection: Connection) -> list[JobRecord]:
    """Return all sent and running jobs, the oldest first."""
    return load_records(connection, select(jobs).where(jobs.c.state.in_(ACTIVE_STATES)).order_by(jobs.c.id))


def get_jobs(connection: Connection, ids: Sequence[str]) -> dict[str, JobRecord]:
    """Return those of these jobs that exist, by id."""
    return {job_record.id: job_record for job_record in load_records(connection, _SELECT_JOBS, {"ids": list(ids)})}


def get_active_and_waiting(connection: Connection, waiting: Sequence[str]) -> dict[str, JobRecord]:
    """Return all sent and running jobs and these waiting ones by id, the oldest first.

    It is one statement: two would miss a job that is sent between them.
    """
    query = select(jobs).where(jobs.c.state.in_(ACTIVE_STATES) | jobs.c.id.in_(_IDS)).order_by(jobs.c.id)
    return {job_record.id: job_record for job_record in load_records(connection, query, {"ids": list(waiting)})}


def list_queued(connection: Connection, guild: str | None, limit: int) -> list[JobRecord]:
    """Return waiting jobs, the oldest first."""
    query = select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.id).limit(limit)
    return load_records(connection, query if guild is None else query.where(jobs.c.guild == guild))


def list_queued_of_member(connection: Connection, member: str) -> list[JobRecord]:
    """Return at most 100 waiting jobs of a member, the oldest first."""
    query = select(jobs).where(jobs.c.member == member, jobs.c.state == "queued")
    return load_records(connection, query.order_by(jobs.c.id).limit(100))


def list_open_ids(connection: Connection, guild: str | None) -> list[str]:
    """Return every open job of a guild (None: of all) that is not being cancelled. Waiting jobs come first, so that
    they are cancelled before they are sent.
    """
    query = select(jobs.c.id).where(jobs.c.state.in_(OPEN_STATES), jobs.c.cancelling.is_(False))
    query = query if guild is None else query.where(jobs.c.guild == guild)
    return list(connection.execute(query.order_by(jobs.c.state != "queued", jobs.c.id)).scalars())


def list_expired(connection: Connection, now: float) -> list[JobRecord]:
    """Return at most 100 open jobs whose deadline has passed."""
    query = select(jobs).where(jobs.c.state.in_(OPEN_STATES), jobs.c.deadline <= now)
    return load_records(connection, query.order_by(jobs.c.id).limit(100))


def load_waiting_queue(
    connection: Connection, max_jobs: int
) -> tuple[list[tuple[WaitingJob, str]], dict[str, Account]] | None:
    """Return every waiting job with its model, and the accounts above them; None if more than `max_jobs` wait."""
    query = select(jobs.c.id, jobs.c.account, jobs.c.cost, jobs.c.billed, jobs.c.model).where(jobs.c.state == "queued")
    rows = connection.execute(query.limit(max_jobs + 1)).all()
    if len(rows) > max_jobs:
        return None
    account_rows = connection.execute(select(accounts).where(accounts.c.queued > 0))
    accounts_by_path = {row["path"]: Account(**dict(row)) for row in account_rows.mappings()}
    return [
        (WaitingJob(row.id, row.account, max(0.0, row.cost - row.billed)), row.model) for row in rows
    ], accounts_by_path


def count_earlier_jobs(connection: Connection, job_record: JobRecord) -> int:
    """Count the member's jobs that wait before this one."""
    return int(connection.execute(_COUNT_EARLIER, {"account": job_record.account, "job": job_record.id}).scalar_one())


def summarise_waiting(connection: Connection) -> dict[str, list[tuple[int, float]]]:
    """Return for each pool one (number of jobs, mean cost) pair for each waiting member."""
    query = select(jobs.c.pool, func.count().label("n"), func.avg(jobs.c.cost).label("cost"))
    by_pool: dict[str, list[tuple[int, float]]] = {}
    for row in connection.execute(query.where(jobs.c.state == "queued").group_by(jobs.c.pool, jobs.c.account)):
        by_pool.setdefault(row.pool, []).append((int(row.n), float(row.cost)))
    return by_pool


def list_pictures(connection: Connection, ids: Sequence[str]) -> list[StoredPicture]:
    """Return the pictures and ladders of these jobs, by job and image."""
    return [StoredPicture(**row) for row in connection.execute(_SELECT_PICTURES, {"ids": list(ids)}).mappings()]


def list_audit(connection: Connection, ids: Sequence[str]) -> list[AuditEntry]:
    """Return the audit lines of these jobs, in order."""
    query = select(audit_lines).where(audit_lines.c.job.in_(ids)).order_by(audit_lines.c.id)
    return [decode_audit_entry(row) for row in connection.execute(query).mappings()]


def list_models(connection: Connection) -> list[tuple[ModelProfile, str]]:
    """Return every model that a worker ever offered, with its pool, the last seen first."""
    known: list[tuple[ModelProfile, str]] = []
    for row in connection.execute(select(models).order_by(models.c.seen.desc(), models.c.name)):
        try:
            known.append((decode(row.warm, ModelProfile), row.pool))
        except MalformedMessage as error:
            log.error("model %s: its profile cannot be read: %s", row.name, error)
    return known


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


def list_parts(connection: Connection, job: str) -> list[JobRecord]:
    """Return all jobs of a job's interpolation, in their order on the way; empty if it belongs to none."""
    job_records = load_records(connection, select(jobs).where(jobs.c.id == job))
    return _find_interpolation(connection, job_records[0]) if job_records else []


def find_last_finished(connection: Connection, job_records: Iterable[JobRecord]) -> set[str]:
    """Return those jobs that finished last in a completed interpolation."""
    last_ids: set[str] = set()
    for job_record in job_records:
        group = _find_interpolation(connection, job_record) if is_end(job_record.state) else []
        finished = [part for part in group if part.state == "finished"]
        if finished and all(is_end(part.state) for part in group):
            last_part = max(finished, key=lambda part: (part.ended or 0.0, part.id))
            last_ids |= {job_record.id} & {last_part.id}
    return last_ids


def _find_interpolation(connection: Connection, job_record: JobRecord) -> list[JobRecord]:
    if _get_interpolation(job_record) is None:
        return []
    request_jobs: Sequence[JobRecord] = list_by_key(connection, job_record.key) if job_record.key else [job_record]
    groups = _split_interpolations(part for part in request_jobs if _is_same_interpolation(part, job_record))
    return next((group for group in groups if job_record.id in {part.id for part in group}), list[JobRecord]())


def _split_interpolations(request_jobs: Iterable[JobRecord]) -> list[list[JobRecord]]:
    """Split the ordered jobs of one request into interpolations. A request may ask for the same one twice."""
    groups = list[list[JobRecord]]()
    last_position = -1
    for part in request_jobs:
        if (interpolation := _get_interpolation(part)) is None:
            continue
        if not groups or interpolation.first <= last_position:
            groups.append([])
        groups[-1].append(part)
        last_position = interpolation.first
    return groups


def _get_interpolation(job_record: JobRecord) -> Interpolation | None:
    return job_record.task.interpolation if isinstance(job_record.task, Recipe) else None


def _is_same_interpolation(job_record: JobRecord, other: JobRecord) -> bool:
    """Return True if recipe and interpolation are equal but for the position. A request may make several."""
    first, second = (
        msgspec.structs.replace(record.task, count=1, bucket=None, interpolation=None)
        for record in (job_record, other)
        if isinstance(record.task, Recipe)
    )
    interpolations = {
        msgspec.structs.replace(interpolation, first=0)
        for each in (job_record, other)
        if (interpolation := _get_interpolation(each)) is not None
    }
    return first == second and len(interpolations) == 1


@dataclass(frozen=True)
class JobGroup:
    """Jobs of one state, tier and pool: their number, their batch rows, and when the oldest was created."""

    state: JobState
    tier: str
    pool: str
    jobs: int
    rows: int
    oldest_created: float


def count_open_jobs(connection: Connection) -> list[JobGroup]:
    """Return the counts of all jobs that are not over."""
    group_columns = (jobs.c.state, jobs.c.tier, jobs.c.pool)
    query = select(*group_columns, func.count(), func.sum(jobs.c.rows), func.min(jobs.c.created))
    rows = connection.execute(query.where(jobs.c.state.in_(OPEN_STATES)).group_by(*group_columns)).all()
    return [
        JobGroup(state, tier, pool, int(count), int(row_sum), float(oldest))
        for state, tier, pool, count, row_sum, oldest in rows
    ]
