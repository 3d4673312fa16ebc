"""Retention: removes ended jobs by age or for disk space, and remembers why each was removed.

Three steps, so that a crash between two of them leaks no file. The job is marked as deleted, with a row in
`deleted_jobs`. Its pictures are deleted like those of any deleted job (`deletion_steps`). Then its row is deleted, with
all rows that refer to it. Never removed: favourites, open jobs and their sources, undelivered results, jobs with an
open incident. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select

from bot.domain.job_states import END_STATES, OPEN_STATES
from bot.store.deletion import deletion_steps
from bot.store.deletion.deletion_steps import mark_without_incident
from bot.store.schema.tables import deleted_jobs, destinations, favourites, incidents, jobs, pictures

DeletionReason = Literal["age", "room", "forgotten", "enlarged"]
RETENTION_REASONS: tuple[DeletionReason, ...] = ("age", "room")  # removed by retention, at nobody's request
BATCH_SIZE = 200  # jobs in one transaction


def list_expired(connection: Connection, ended_before: float, limit: int = BATCH_SIZE) -> list[str]:
    """Return removable jobs that ended at `ended_before` or earlier, the oldest first."""
    query = select(jobs.c.id).where(jobs.c.ended <= ended_before, _is_removable(), _is_not_marked())
    return list(connection.execute(query.order_by(jobs.c.ended).limit(limit)).scalars())


def list_oldest(connection: Connection, ended_before: float, limit: int = BATCH_SIZE) -> list[tuple[str, int]]:
    """Return removable jobs with pictures that ended at `ended_before` or earlier, the oldest first, each with its
    bytes.
    """
    size = select(func.coalesce(func.sum(pictures.c.bytes), 0)).where(pictures.c.job == jobs.c.id).scalar_subquery()
    query = select(jobs.c.id, size.label("size")).where(
        jobs.c.ended <= ended_before, jobs.c.deleted.is_(None), _is_removable()
    )
    query_with_pictures = query.where(exists().where(pictures.c.job == jobs.c.id)).order_by(jobs.c.ended).limit(limit)
    return [(row.id, int(row.size)) for row in connection.execute(query_with_pictures)]


def sum_bytes(connection: Connection) -> int:
    """Return the bytes of all pictures and ladders of undeleted jobs, each content counted once."""
    sizes = select(func.max(pictures.c.bytes).label("bytes")).join(jobs, jobs.c.id == pictures.c.job)
    unique_sizes = sizes.where(jobs.c.deleted.is_(None)).group_by(pictures.c.sha256).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(unique_sizes.c.bytes), 0))).scalar_one())


def mark_removed(connection: Connection, ids: Sequence[str], reason: DeletionReason, now: float) -> list[str]:
    """Take the first step for jobs that are still removable: a member may have made one a favourite meanwhile."""
    query = select(jobs.c.id).where(jobs.c.id.in_(ids), _is_removable(), _is_not_marked())
    removable_ids = list(connection.execute(query).scalars())
    mark_without_incident(connection, removable_ids, now)
    record_reasons(connection, removable_ids, reason, now)
    return removable_ids


def record_reasons(connection: Connection, ids: Sequence[str], reason: DeletionReason, now: float) -> None:
    """Record why jobs were removed. An earlier reason stays."""
    known_ids = set(connection.execute(select(deleted_jobs.c.job).where(deleted_jobs.c.job.in_(ids))).scalars())
    rows = [{"job": job, "at": now, "why": reason} for job in ids if job not in known_ids]
    if rows:
        connection.execute(deleted_jobs.insert(), rows)


def list_marked(
    connection: Connection, reasons: Sequence[DeletionReason], after_job: str = "", limit: int = BATCH_SIZE
) -> list[tuple[str, DeletionReason]]:
    """Return jobs after the first step whose rows still exist, in order, after id `after_job`."""
    query = select(deleted_jobs.c.job, deleted_jobs.c.why).join(jobs, jobs.c.id == deleted_jobs.c.job)
    query = query.where(deleted_jobs.c.why.in_(reasons), deleted_jobs.c.job > after_job)
    rows = connection.execute(query.order_by(deleted_jobs.c.job).limit(limit))
    return [(row.job, cast(DeletionReason, row.why)) for row in rows]


def delete_rows(connection: Connection, ids: Sequence[str], now: float) -> list[str]:
    """Take the last step: delete the rows of ended jobs without pictures. Their charges stay, anonymised."""
    has_no_pictures = ~exists().where(pictures.c.job == jobs.c.id)
    query = select(jobs.c.id).where(
        jobs.c.id.in_(ids), jobs.c.deleted.is_not(None), jobs.c.state.in_(END_STATES), has_no_pictures
    )
    emptied_ids = list(connection.execute(query).scalars())
    deletion_steps.archive_charges(connection, emptied_ids, now)
    connection.execute(jobs.delete().where(jobs.c.id.in_(emptied_ids)))
    return emptied_ids


def read_deletion_reason(connection: Connection, job: str) -> DeletionReason | None:
    """Return why a job was removed; None if unknown."""
    reason = connection.execute(select(deleted_jobs.c.why).where(deleted_jobs.c.job == job)).scalar_one_or_none()
    return cast("DeletionReason | None", reason)


def delete_old_reasons(connection: Connection, recorded_before: float, limit: int = BATCH_SIZE) -> int:
    """Delete reasons older than `recorded_before`, unless the job's row still exists. Return how many."""
    old_reasons = (
        select(deleted_jobs.c.job)
        .where(deleted_jobs.c.at <= recorded_before, ~exists().where(jobs.c.id == deleted_jobs.c.job))
        .limit(limit)
    )
    return connection.execute(deleted_jobs.delete().where(deleted_jobs.c.job.in_(old_reasons))).rowcount


def _is_removable() -> ColumnElement[bool]:
    is_favourite = exists().where(favourites.c.job == jobs.c.id)
    is_undelivered = exists().where(
        destinations.c.job == jobs.c.id, destinations.c.kind == "discord", destinations.c.delivered.is_(None)
    )
    has_open_incident = exists().where(incidents.c.job == jobs.c.id, incidents.c.closed.is_(None))
    child = jobs.alias("child")
    # an upscale reads its picture
    has_open_child = exists().where(child.c.parent == jobs.c.id, child.c.state.in_(OPEN_STATES))
    return and_(jobs.c.state.in_(END_STATES), ~is_favourite, ~is_undelivered, ~has_open_incident, ~has_open_child)


def _is_not_marked() -> ColumnElement[bool]:
    return ~exists().where(deleted_jobs.c.job == jobs.c.id)
