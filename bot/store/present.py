"""What waits and runs at this moment, counted: one look at the tables, for whoever measures the house.

Counts alone: no member, no server and no prompt. Works inside its caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from bot.states import OPEN, State
from bot.store.tables import jobs


@dataclass(frozen=True)
class Group:
    """Jobs of one state, tier and pool: how many, their rows of a batch, and when the oldest was asked for."""

    state: State
    tier: str
    pool: str
    jobs: int
    rows: int
    oldest: float


def groups(connection: Connection) -> list[Group]:
    """Everything that is not over."""
    by = (jobs.c.state, jobs.c.tier, jobs.c.pool)
    asked = select(*by, func.count(), func.sum(jobs.c.rows), func.min(jobs.c.created))
    rows = connection.execute(asked.where(jobs.c.state.in_(OPEN)).group_by(*by)).all()
    return [
        Group(state, tier, pool, int(count), int(taken), float(oldest))
        for state, tier, pool, count, taken, oldest in rows
    ]
