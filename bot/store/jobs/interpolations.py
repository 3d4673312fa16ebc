"""Finds the jobs of one interpolation: jobs of one request whose recipes differ only in their position on the way.

Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, select

from bot.domain.job_states import is_end
from bot.store.jobs.queries import list_by_key, load_records
from bot.store.jobs.records import JobRecord
from bot.store.schema.tables import jobs
from engine.contract import Interpolation, Recipe


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
