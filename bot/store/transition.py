"""One transition of one job: the row, its accounts and the audit together. The only place that writes a job's state.

Every function works inside a transaction that its caller began. What `bot.states` does not allow changes nothing.
"""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, select, update

from bot.states import ACTIVE, TRANSITIONS, Move, State
from bot.store.accounts import shift
from bot.store.tables import jobs, moves


def change(
    connection: Connection, kind: Move, job: str, now: float, *,
    epoch: int | None = None, why: str = "", **values: object,
) -> tuple[RowMapping, State] | None:  # fmt: skip
    """The row after the move, and the state it left. None: no such job, its state does not allow it, or a newer epoch
    has it.
    """
    rule = TRANSITIONS[kind]
    before = locked(connection, job)
    if before is None:
        return None
    moving = update(jobs).where(jobs.c.id == job, jobs.c.state.in_(rule.sources))
    if epoch is not None:
        moving = moving.where(jobs.c.epoch <= epoch)
        values["epoch"] = epoch
    changed = connection.execute(moving.values(state=rule.target, **values).returning(jobs))
    row = changed.mappings().first()
    if row is None:
        return None
    _tally(connection, row["account"], before["state"], rule.target)
    note(connection, row, before["state"], now, why)
    return row, before["state"]


def locked(connection: Connection, job: str) -> RowMapping | None:
    """The row, which nobody else changes until this transaction ends."""
    return connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()


def _tally(connection: Connection, account: str, source: State, target: State) -> None:
    """Count a move from state to state in the accounts."""

    def weigh(state: State) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE))

    (queued, active), (queues, acts) = weigh(source), weigh(target)
    shift(connection, account, queued=queues - queued, active=acts - active)


def note(connection: Connection, row: RowMapping, source: str, now: float, why: str) -> None:
    """One line of the audit."""
    connection.execute(
        moves.insert().values(
            job=row["id"],
            at=now,
            source=source,
            target=row["state"],
            attempt=row["attempt"],
            epoch=row["epoch"],
            why=why,
        )
    )
