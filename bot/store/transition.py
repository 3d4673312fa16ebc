"""Applies one transition to one job: row, accounts and audit together. The only code that writes a job's state.

Every function works inside its caller's transaction. A transition that `bot.states` does not allow changes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from bot.states import ACTIVE, TRANSITIONS, Move, State
from bot.store.accounts import shift
from bot.store.tables import jobs, moves

_LOCKED = select(jobs).where(jobs.c.id == bindparam("job")).with_for_update()
_LINE = moves.insert()


def change(
    connection: Connection, kind: Move, job: str, now: float, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> tuple[RowMapping, State] | None:  # fmt: skip
    """Apply the move. Return the new row and the old state. None: no such job, its state does not allow it, or a newer
    epoch has it.
    """
    rule = TRANSITIONS[kind]
    before = locked(connection, job)
    if before is None:
        return None
    fence = {} if epoch is None else {"fence": epoch}
    values |= {} if epoch is None else {"epoch": epoch}
    told = {f"new_{name}": value for name, value in values.items()}
    changed = connection.execute(_moving(kind, tuple(values), bool(fence)), {"job": job} | fence | told)
    row = changed.mappings().first()
    if row is None:
        return None
    _tally(connection, row["account"], before["state"], rule.target)
    note(connection, row, before["state"], now, why)
    return row, before["state"]


@cache
def _moving(kind: Move, names: tuple[str, ...], fenced: bool) -> ReturningUpdate[Any]:
    """Build the UPDATE. Cached for each set of arguments: building takes longer than running."""
    rule = TRANSITIONS[kind]
    moving = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.state.in_(rule.sources))
    if fenced:
        moving = moving.where(jobs.c.epoch <= bindparam("fence"))
    return moving.values(state=rule.target, **{name: bindparam(f"new_{name}") for name in names}).returning(jobs)


def locked(connection: Connection, job: str) -> RowMapping | None:
    """Return the job's row, locked until this transaction ends."""
    return connection.execute(_LOCKED, {"job": job}).mappings().first()


def _tally(connection: Connection, account: str, source: State, target: State) -> None:
    """Update the accounts' job counts for a transition."""

    def weigh(state: State) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE))

    (queued, active), (queues, acts) = weigh(source), weigh(target)
    shift(connection, account, queued=queues - queued, active=acts - active)


def note(connection: Connection, row: RowMapping, source: str, now: float, why: str) -> None:
    """Write one audit line."""
    line = {
        "job": row["id"], "at": now, "source": source, "target": row["state"], "attempt": row["attempt"],
        "epoch": row["epoch"], "why": why,
    }  # fmt: skip
    connection.execute(_LINE, line)
