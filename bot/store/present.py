"""Counts waiting and running jobs, for metrics. Works inside its caller's transaction.

Exposes counts only: no member, no server and no prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from bot.states import OPEN, State
from bot.store.tables import jobs


@dataclass(frozen=True)
class Group:
    """Jobs of one state, tier and pool: their number, their batch rows, and when the oldest was created."""

    state: State
    tier: str
    pool: str
    jobs: int
    rows: int
    oldest: float


def groups(connection: Connection) -> list[Group]:
    """Return the counts of all jobs that are not over."""
    by = (jobs.c.state, jobs.c.tier, jobs.c.pool)
    asked = select(*by, func.count(), func.sum(jobs.c.rows), func.min(jobs.c.created))
    rows = connection.execute(asked.where(jobs.c.state.in_(OPEN)).group_by(*by)).all()
    return [
        Group(state, tier, pool, int(count), int(taken), float(oldest))
        for state, tier, pool, count, taken, oldest in rows
    ]
