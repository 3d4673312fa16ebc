"""Finds jobs that wait in a pool without a fitting worker, and moves one to another pool, with its billed cost.

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, select, update

from bot.fair import user
from bot.store import reads
from bot.store.accounts import bill, enter, shift
from bot.store.records import Record, record
from bot.store.tables import accounts, jobs
from bot.store.transition import locked, note

MOST = 100  # jobs per page


def pools(connection: Connection) -> list[str]:
    """Return the pools in which any job waits."""
    asked = select(accounts.c.path).where(accounts.c.parent == "", accounts.c.queued > 0)
    return [user(path) for path in connection.execute(asked).scalars()]


def waiting(connection: Connection, pool: str, models: Collection[str], after: str = "") -> tuple[list[Record], str]:
    """Return a page of jobs that wait in a pool for one of these models ("": for any), the oldest first.

    The page begins after job `after`. Also return the last job of the page, empty if it is the last page.
    """
    theirs = (jobs.c.state == "queued", jobs.c.pool == pool, jobs.c.model.in_(models), jobs.c.id > after)
    page = list(connection.execute(select(jobs.c.id).where(*theirs).order_by(jobs.c.id).limit(MOST)).scalars())
    found = reads.records(connection, select(jobs).where(jobs.c.id.in_(page)).order_by(jobs.c.id))
    return found, page[-1] if len(page) == MOST else ""


def reroute(connection: Connection, job: str, pool: str, weights: Mapping[str, float], now: float) -> Record | None:
    """Move a waiting job to another pool. None if it waits no more, or waits there already."""
    before = locked(connection, job)
    if before is None or before["state"] != "queued" or before["pool"] == pool:
        return None
    top, _, below = before["account"].partition("/")
    account = f"{pool}/{below}"
    for path, sign in ((before["account"], -1), (account, 1)):
        if sign > 0:
            enter(connection, account, weights, now)
        bill(connection, path, sign * before["billed"])
        shift(connection, path, queued=sign)
    moving = update(jobs).where(jobs.c.id == job).values(pool=pool, account=account).returning(jobs)
    row = connection.execute(moving).mappings().one()
    note(connection, row, "queued", now, f"from pool {top}, where nobody can run it")
    return record(row)
