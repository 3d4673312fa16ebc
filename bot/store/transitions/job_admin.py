"""Job administration for the operator, from outside the bot's process: list, cancel, requeue.

It makes the bot's transitions (`job_transitions`) and marks their audit lines. A running bot detects changes by these
lines (`bot.jobs.control`). Works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from bot.domain.job_states import JobState
from bot.store.jobs import queries
from bot.store.jobs.records import AuditEntry, JobRecord, Transition, decode_audit_entry
from bot.store.schema.tables import audit_lines, jobs
from bot.store.transitions.job_transitions import make_transition, request_cancel, write_audit_line

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
    return queries.load_records(connection, query)


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
