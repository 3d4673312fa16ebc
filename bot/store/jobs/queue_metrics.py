"""Counts waiting and running jobs, for metrics. Works inside its caller's transaction.

Exposes counts only: no member, no server and no prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from bot.domain.job_states import OPEN_STATES, JobState
from bot.store.schema.tables import jobs


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
