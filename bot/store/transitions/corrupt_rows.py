"""Fails jobs whose rows cannot be read, as after a change of the wire contract or on a corrupt disk.

A normal transition needs a readable record (`job_transitions`); this module changes the raw row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import ValidationError
from sqlalchemy import Connection, RowMapping, select

from bot.domain.job_states import OPEN_STATES
from bot.store.fairness.accounts import add_cost
from bot.store.jobs.records import decode_record
from bot.store.schema.tables import amendments, jobs
from bot.store.transitions.amendments import decode_amendment, refuse_waiting
from bot.store.transitions.state_change import apply_transition
from engine.contract import MalformedMessage

UNREADABLE_TEXT = "Its database entry cannot be read any more; nothing was charged."


def fail_unreadable_jobs(connection: Connection, now: float) -> list[str]:
    """Fail every unreadable open job without charge, and return their ids. Reads all open jobs."""
    rows = connection.execute(select(jobs).where(jobs.c.state.in_(OPEN_STATES)).order_by(jobs.c.id)).mappings().all()
    with_unreadable_changes = _list_jobs_with_unreadable_changes(connection)
    unreadable = [row for row in rows if not _is_readable(row, decode_record) or row["id"] in with_unreadable_changes]
    for row in unreadable:
        _fail_job(connection, row, now)
    return [row["id"] for row in unreadable]


def _is_readable(row: RowMapping, decode: Callable[[RowMapping], object]) -> bool:
    try:
        decode(row)
    except (MalformedMessage, ValidationError, TypeError):
        return False
    return True


def _list_jobs_with_unreadable_changes(connection: Connection) -> set[str]:
    """Return the open jobs for which a newer version has written a change that this one does not know."""
    query = select(amendments).join(jobs, jobs.c.id == amendments.c.job).where(jobs.c.state.in_(OPEN_STATES))
    return {row["job"] for row in connection.execute(query).mappings() if not _is_readable(row, decode_amendment)}


def _fail_job(connection: Connection, row: RowMapping, now: float) -> None:
    values: dict[str, Any] = {
        "reason": UNREADABLE_TEXT,
        "blame": "us",
        "ended": now,
        "cancelling": False,
        "charged": 0.0,
        "billed": 0.0,
    }
    if apply_transition(connection, "fail", row["id"], now, audit_note="unreadable", **values) is not None:
        add_cost(connection, row["account"], -row["billed"])
        refuse_waiting(connection, row["id"])
