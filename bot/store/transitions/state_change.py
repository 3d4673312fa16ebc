"""Applies one transition to one job: row, accounts and audit together. The only code that writes a job's state.

Every function works inside its caller's transaction. A transition that `bot.domain.job_states` does not allow changes
nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from bot.domain.job_states import ACTIVE_STATES, TRANSITIONS, JobState, TransitionKind
from bot.store.fairness.accounts import adjust_counts
from bot.store.schema.tables import audit_lines, jobs

_SELECT_LOCKED = select(jobs).where(jobs.c.id == bindparam("job")).with_for_update()
_INSERT_AUDIT_LINE = audit_lines.insert()


def apply_transition(
    connection: Connection,
    kind: TransitionKind,
    job: str,
    now: float,
    *,
    epoch: int | None = None,
    audit_note: str = "",
    **values: object,
) -> tuple[RowMapping, JobState] | None:
    """Apply the transition. Return the new row and the old state. None: no such job, its state does not allow it, or a
    newer epoch has it.
    """
    transition = TRANSITIONS[kind]
    old_row = lock_job(connection, job)
    if old_row is None:
        return None
    fence_params = {} if epoch is None else {"fence": epoch}
    values |= {} if epoch is None else {"epoch": epoch}
    value_params = {f"new_{name}": value for name, value in values.items()}
    result = connection.execute(
        _build_update(kind, tuple(values), bool(fence_params)), {"job": job} | fence_params | value_params
    )
    row = result.mappings().first()
    if row is None:
        return None
    _update_counts(connection, row["account"], old_row["state"], transition.target)
    write_audit_line(connection, row, old_row["state"], now, audit_note)
    return row, old_row["state"]


@cache
def _build_update(kind: TransitionKind, names: tuple[str, ...], is_fenced: bool) -> ReturningUpdate[Any]:
    """Build the UPDATE. Cached for each set of arguments: building takes longer than running."""
    transition = TRANSITIONS[kind]
    statement = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.state.in_(transition.sources))
    if is_fenced:
        statement = statement.where(jobs.c.epoch <= bindparam("fence"))
    return statement.values(state=transition.target, **{name: bindparam(f"new_{name}") for name in names}).returning(
        jobs
    )


def lock_job(connection: Connection, job: str) -> RowMapping | None:
    """Return the job's row, locked until this transaction ends."""
    return connection.execute(_SELECT_LOCKED, {"job": job}).mappings().first()


def _update_counts(connection: Connection, account: str, source: JobState, target: JobState) -> None:
    """Update the accounts' job counts for a transition."""

    def count_state(state: JobState) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE_STATES))

    (old_queued, old_active), (new_queued, new_active) = count_state(source), count_state(target)
    adjust_counts(connection, account, queued=new_queued - old_queued, active=new_active - old_active)


def write_audit_line(connection: Connection, row: RowMapping, source: str, now: float, audit_note: str) -> None:
    """Write one audit line."""
    values = {
        "job": row["id"],
        "at": now,
        "source": source,
        "target": row["state"],
        "attempt": row["attempt"],
        "epoch": row["epoch"],
        "why": audit_note,
    }
    connection.execute(_INSERT_AUDIT_LINE, values)
