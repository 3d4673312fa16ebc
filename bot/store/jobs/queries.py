"""Read queries: jobs, pictures, usage, accounts. Each works inside its caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, bindparam, func, select

from bot.domain.job_states import ACTIVE_STATES, OPEN_STATES
from bot.policy.fair_queue import Account, WaitingJob
from bot.store.jobs.records import AuditEntry, JobRecord, StoredPicture, decode_audit_entry, decode_record
from bot.store.schema.tables import accounts, audit_lines, jobs, models, pictures
from engine.contract import MalformedMessage, ModelProfile, decode

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


def load_records(
    connection: Connection, query: Select[*tuple[Any, ...]], params: Mapping[str, object] | None = None
) -> list[JobRecord]:
    """Return rows of `jobs` as records. A corrupt row is skipped and logged: it must not block the others."""
    loaded: list[JobRecord] = []
    for row in connection.execute(query, params or {}).mappings():
        try:
            loaded.append(decode_record(row))
        except (MalformedMessage, TypeError) as error:
            log.error("job %s: its row cannot be read: %s", row["id"], error)
    return loaded


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
