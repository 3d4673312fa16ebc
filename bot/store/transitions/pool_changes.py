"""Finds jobs that wait in a pool without a fitting worker, and moves one to another pool, with its billed cost.

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, select, update

from bot.policy.fair_queue import account_name
from bot.store.fairness.accounts import add_cost, adjust_counts, enter_accounts
from bot.store.jobs import queries
from bot.store.jobs.records import JobRecord, decode_record
from bot.store.schema.tables import accounts, jobs
from bot.store.transitions.state_change import lock_job, write_audit_line

PAGE_SIZE = 100  # jobs per page


def list_waiting_pools(connection: Connection) -> list[str]:
    """Return the pools in which any job waits."""
    query = select(accounts.c.path).where(accounts.c.parent == "", accounts.c.queued > 0)
    return [account_name(path) for path in connection.execute(query).scalars()]


def list_waiting_jobs(
    connection: Connection, pool: str, models: Collection[str], after_job: str = ""
) -> tuple[list[JobRecord], str]:
    """Return a page of jobs that wait in a pool for one of these models ("": for any), the oldest first.

    The page begins after job `after_job`. Also return the last job of the page, empty if it is the last page.
    """
    conditions = (jobs.c.state == "queued", jobs.c.pool == pool, jobs.c.model.in_(models), jobs.c.id > after_job)
    page_ids = list(
        connection.execute(select(jobs.c.id).where(*conditions).order_by(jobs.c.id).limit(PAGE_SIZE)).scalars()
    )
    page_records = queries.load_records(connection, select(jobs).where(jobs.c.id.in_(page_ids)).order_by(jobs.c.id))
    return page_records, page_ids[-1] if len(page_ids) == PAGE_SIZE else ""


def reroute_job(
    connection: Connection, job: str, pool: str, weights: Mapping[str, float], now: float
) -> JobRecord | None:
    """Move a waiting job to another pool. None if it no longer waits, or waits there already."""
    old_row = lock_job(connection, job)
    if old_row is None or old_row["state"] != "queued" or old_row["pool"] == pool:
        return None
    old_pool, _, path_in_pool = old_row["account"].partition("/")
    new_account = f"{pool}/{path_in_pool}"
    for path, sign in ((old_row["account"], -1), (new_account, 1)):
        if sign > 0:
            enter_accounts(connection, new_account, weights, now)
        add_cost(connection, path, sign * old_row["billed"])
        adjust_counts(connection, path, queued=sign)
    statement = update(jobs).where(jobs.c.id == job).values(pool=pool, account=new_account).returning(jobs)
    row = connection.execute(statement).mappings().one()
    write_audit_line(connection, row, "queued", now, f"from pool {old_pool}, where nobody can run it")
    return decode_record(row)
