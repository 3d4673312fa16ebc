"""Fails jobs whose rows cannot be read, as after a change of the wire contract or on a corrupt disk.

A normal transition needs a readable record (`moves`); this module changes the raw row.
"""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, select

from bot.states import OPEN
from bot.store.accounts import bill
from bot.store.records import record
from bot.store.tables import jobs
from bot.store.transition import change
from engine.job import Malformed

UNREADABLE = "Its database entry cannot be read any more; nothing was charged."


def weed(connection: Connection, now: float) -> list[str]:
    """Fail every unreadable open job without charge, and return their ids. Reads all open jobs."""
    rows = connection.execute(select(jobs).where(jobs.c.state.in_(OPEN)).order_by(jobs.c.id)).mappings().all()
    spoilt = [row for row in rows if not _readable(row)]
    for row in spoilt:
        _fail(connection, row, now)
    return [row["id"] for row in spoilt]


def _readable(row: RowMapping) -> bool:
    try:
        record(row)
    except (Malformed, TypeError):
        return False
    return True


def _fail(connection: Connection, row: RowMapping, now: float) -> None:
    values = {"reason": UNREADABLE, "blame": "us", "ended": now, "cancelling": False, "charged": 0.0, "billed": 0.0}
    if change(connection, "fail", row["id"], now, why="unreadable", **values) is not None:
        bill(connection, row["account"], -row["billed"])
