"""Changes of jobs besides their usual life: by the operator, to another pool, and of rows that cannot be read.

The operator lists, cancels and requeues from outside the bot's process. That makes the bot's transitions
(`job_transitions`) and marks their audit lines, by which a running bot detects them (`bot.jobs.control`). Every
function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import ValidationError
from sqlalchemy import Connection, RowMapping, func, select, update

from bot.domain.job_states import OPEN_STATES, JobState
from bot.policy.fair_queue import account_name
from bot.store.fairness.accounts import add_cost, adjust_counts, enter_accounts
from bot.store.jobs.records import AuditEntry, JobRecord, Transition, decode_audit_entry, decode_record, load_records
from bot.store.schema.tables import accounts, amendments, audit_lines, jobs
from bot.store.transitions.amendments import decode_amendment, refuse_waiting
from bot.store.transitions.job_transitions import make_transition, request_cancel
from bot.store.transitions.job_writes import apply_transition, lock_job, write_audit_line
from engine.contract import MalformedMessage

CANCEL_NOTE = "cancelled at the command line"
REQUEUE_NOTE = "asked for at the command line"
OVERLAP_LINES = 200  # audit lines that are read again: another process may commit a smaller number later


@dataclass(frozen=True)
class JobFilter:
    """A job filter; an empty field matches all. Newest first, or oldest first with `oldest_first`."""

    states: Sequence[JobState] = ()
    guild: str = ""
    member: str = ""
    limit: int = 20
    oldest_first: bool = False


def list_jobs(connection: Connection, job_filter: JobFilter) -> list[JobRecord]:
    """Return the matching jobs, deleted ones included."""
    query = select(jobs).order_by(jobs.c.id if job_filter.oldest_first else jobs.c.id.desc()).limit(job_filter.limit)
    if job_filter.states:
        query = query.where(jobs.c.state.in_(job_filter.states))
    if job_filter.guild:
        query = query.where(jobs.c.guild == job_filter.guild)
    if job_filter.member:
        query = query.where(jobs.c.member == job_filter.member)
    return load_records(connection, query)


def list_job_ids(connection: Connection, prefix: str, limit: int) -> list[str]:
    """Return at most `limit` job ids with this prefix, the newest first."""
    query = select(jobs.c.id).where(jobs.c.id.startswith(prefix, autoescape=True))
    return list(connection.execute(query.order_by(jobs.c.id.desc()).limit(limit)).scalars())


def cancel_job(connection: Connection, job: str, now: float) -> JobRecord | None:
    """End a waiting job, or flag a sent one as cancelling. Return the job now; None if there is none."""
    record, transition = request_cancel(connection, job, now)
    if transition is not None:
        conditions = (audit_lines.c.job == job, audit_lines.c.target == "cancelled")
        connection.execute(update(audit_lines).where(*conditions).values(why=CANCEL_NOTE))
    elif record is not None and record.cancelling:
        row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one()
        write_audit_line(connection, row, record.state, now, CANCEL_NOTE)
    return record


def requeue_job(connection: Connection, job: str, now: float) -> Transition | None:
    """Queue a sent or running job again as its next attempt, and reset its count of attempts without progress.

    None if no worker has it. A running bot revokes the claim (`bot.jobs.control`), and the job resumes from
    its newest snapshot.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).mappings().first()
    if row is None or row["cancelling"]:
        return None
    values: dict[str, Any] = {"attempt": row["attempt"] + 1, "worker": "", "barren": 0}
    return make_transition(connection, "requeue", job, now, audit_note=REQUEUE_NOTE, **values)


def read_last_line(connection: Connection) -> int:
    """Return the number of the last audit line."""
    return int(connection.execute(select(func.coalesce(func.max(audit_lines.c.id), 0))).scalar_one())


def list_external_changes(connection: Connection, after_line: int) -> tuple[int, dict[int, AuditEntry]]:
    """Return the last audit line, and the outside changes from `OVERLAP_LINES` lines before `after_line` on."""
    last_line = read_last_line(connection)
    query = select(audit_lines).where(
        audit_lines.c.id > after_line - OVERLAP_LINES,
        audit_lines.c.id <= last_line,
        audit_lines.c.why.in_((CANCEL_NOTE, REQUEUE_NOTE)),
    )
    entries: dict[int, AuditEntry] = {}
    for row in connection.execute(query.order_by(audit_lines.c.id)).mappings():
        entries[row["id"]] = decode_audit_entry(row)
    return last_line, entries


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
    page_records = load_records(connection, select(jobs).where(jobs.c.id.in_(page_ids)).order_by(jobs.c.id))
    return page_records, page_ids[-1] if len(page_ids) == PAGE_SIZE else ""


def reroute_job(connection: Connection, job: str, pool: str, now: float) -> JobRecord | None:
    """Move a waiting job to another pool. None if it no longer waits, or waits there already."""
    old_row = lock_job(connection, job)
    if old_row is None or old_row["state"] != "queued" or old_row["pool"] == pool:
        return None
    old_pool, _, path_in_pool = old_row["account"].partition("/")
    new_account = f"{pool}/{path_in_pool}"
    for path, sign in ((old_row["account"], -1), (new_account, 1)):
        if sign > 0:
            enter_accounts(connection, new_account, old_row["weight"], now)
        add_cost(connection, path, sign * old_row["billed"])
        adjust_counts(connection, path, queued=sign)
    statement = update(jobs).where(jobs.c.id == job).values(pool=pool, account=new_account).returning(jobs)
    row = connection.execute(statement).mappings().one()
    write_audit_line(connection, row, "queued", now, f"from pool {old_pool}, where nobody can run it")
    return decode_record(row)


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
