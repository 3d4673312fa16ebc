"""Jobs in the store, for `darkroom jobs`: finds, reads and changes them, and explains why one waits.

Every mistake is a `UserError` with one sentence. Prints nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from bot.cli.imagine.http_client import ask_running
from bot.cli.store_session import load_store_settings, run_with_store
from bot.domain.dto import Delivery
from bot.domain.errors import UserError
from bot.domain.job_states import END_STATES, OPEN_STATES, JobState, is_end
from bot.domain.texts import format_duration, format_job_count, shorten
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.forecast import Forecast
from bot.store import JobRecord, Store, StoredPicture
from bot.store.jobs import destinations, queries
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from bot.store.transitions.job_admin import JobFilter

T = TypeVar("T")
ID_PREFIX = re.compile(r"[0-9A-Z]{1,26}")
STATE_GROUPS: Mapping[str, tuple[JobState, ...]] = {"open": OPEN_STATES, "over": END_STATES}


@dataclass(frozen=True)
class JobDetails:
    """One job with its history, its destinations and its pictures."""

    record: JobRecord
    history: Sequence[AuditEntry]
    deliveries: Sequence[Delivery]
    pictures: Sequence[StoredPicture]


def find_jobs(
    data: Path | None, states: Sequence[str], guild: str, member: str, limit: int, oldest_first: bool
) -> list[JobRecord]:
    """Return the jobs. Raise `UserError` for an unknown state."""
    wanted_states: tuple[JobState, ...] = tuple(state for name in states for state in _parse_states(name))
    job_filter = JobFilter(wanted_states, guild, member, limit, oldest_first)
    return run_on_folder_store(data, lambda store: store.query(job_admin.list_jobs, job_filter))


def _parse_states(name: str) -> tuple[JobState, ...]:
    known_states: tuple[JobState, ...] = get_args(JobState)
    if name in STATE_GROUPS:
        return STATE_GROUPS[name]
    if name not in known_states:
        raise UserError(f"“{shorten(name, 40)}” is no state: there are {', '.join([*known_states, *STATE_GROUPS])}.")
    return tuple(state for state in known_states if state == name)


def load_details(data: Path | None, id_prefix: str) -> JobDetails:
    """Return one job, found by the beginning of its id."""

    async def load(store: Store) -> JobDetails:
        record = await find_job(store, id_prefix)
        history = await store.query(queries.list_audit, [record.id])
        deliveries = (await store.query(destinations.list_deliveries, record.id)).values()
        films = await store.query(destinations.list_films, record.id)
        pictures = await store.query(queries.list_pictures, [record.id])
        return JobDetails(record, history, [*deliveries, *films], pictures)

    return run_on_folder_store(data, load)


def cancel_job(data: Path | None, id_prefix: str) -> str:
    """Cancel a job; return what happened. Raise `UserError` if it has ended."""

    async def cancel(store: Store) -> str:
        record = await find_job(store, id_prefix)
        _require_open(record)
        updated = await store.write(job_admin.cancel_job, record.id, time.time())
        if updated is None or updated.state != "cancelled":
            _require_open(updated or record)
            return (
                f"Job {record.id} is being cancelled: a running bot tells its worker within seconds, it stops at its "
                "next step, and only the steps it ran are charged."
            )
        if updated.started is None:
            return f"Job {record.id}: cancelled before it began; nothing was charged."
        charge = f"{format_duration(updated.charged)} of device time were" if updated.charged else "nothing was"
        return f"Job {record.id}: cancelled; {charge} charged."

    return run_on_folder_store(data, cancel)


def requeue_job(data: Path | None, id_prefix: str) -> str:
    """Put a job back into the queue; return what happened.

    Raise `UserError` if it has ended, waits or is being cancelled.
    """

    async def requeue(store: Store) -> str:
        record = await find_job(store, id_prefix)
        transition = await store.write(job_admin.requeue_job, record.id, time.time())
        if transition is None:
            current = await find_job(store, record.id)
            _require_open(current)
            raise UserError("It is being cancelled." if current.cancelling else "It waits in the queue already.")
        worker_note = f"; a running bot takes it from {record.worker} within seconds" if record.worker else ""
        return f"Job {record.id} is in the queue again, as attempt {transition.record.attempt}{worker_note}."

    return run_on_folder_store(data, requeue)


def _require_open(record: JobRecord) -> None:
    if is_end(record.state):
        state = "been cancelled" if record.state == "cancelled" else record.state
        raise UserError(f"Too late: job {record.id} has {state} already.")


async def find_job(store: Store, id_prefix: str) -> JobRecord:
    """Return the one job whose id begins so. Raise `UserError` if there is none, or more than one."""
    prefix = id_prefix.strip().upper()
    if not ID_PREFIX.fullmatch(prefix):
        raise UserError(f"“{shorten(id_prefix, 40)}” is no job's id: that has 26 letters and digits.")
    ids = await store.query(job_admin.list_job_ids, prefix, 3)
    if not ids:
        raise UserError(f"There is no job {prefix}.")
    if len(ids) > 1:
        raise UserError(f"More than one job begins with {prefix}, among them {ids[0]} and {ids[1]}: type more of it.")
    record = await store.get_job(ids[0])
    if record is None:
        raise UserError(f"The record of job {ids[0]} is damaged and cannot be read.")
    return record


def run_on_folder_store(data: Path | None, action: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, run `action`, close the store. Raise `UserError` if there is none."""
    return run_with_store(load_store_settings(data).database, action)


MAX_NAMED_JOBS = 3  # how many of the jobs ahead the sentence names
NO_BOT_NOTE = "No running bot answers on this data folder: the workers and the waiting time are not known."


def explain_wait(data: Path | None, id_prefix: str) -> dict[str, Any]:
    """Explain why one job waits, found by the beginning of its id: `sentence`, and what it says as plain values.

    Only the bot knows the live workers, and so when a job will be done. Without a bot, it explains only the order of
    the queue, as far as that is laid out. Raise `UserError`.
    """
    settings = load_store_settings(data)
    record, ahead_count, jobs_ahead = run_on_folder_store(data, lambda store: _find_queue_place(store, id_prefix))
    path = f"/api/jobs/{record.id}/wait-reason"
    bot_answer = None if is_end(record.state) else asyncio.run(ask_running(settings.data, path))
    answer = bot_answer or {}
    return {
        "id": record.id,
        "state": record.state,
        "jobs_ahead": ahead_count,
        "ahead_ids": [job.id for job in jobs_ahead],
        "wait_reason": answer.get("wait_reason", ""),
        "eta": answer.get("eta"),
        "has_bot": bot_answer is not None,
        "sentence": _explanation_text(record, ahead_count, jobs_ahead, answer),
    }


async def _find_queue_place(store: Store, id_prefix: str) -> tuple[JobRecord, int | None, list[JobRecord]]:
    """Return the job, how many start before it, and the first of these, the next to be dispatched first."""
    record = await find_job(store, id_prefix)
    forecast = Forecast(store, ActiveJobs(), dict)
    queue_place = await forecast.get_place(record)
    if queue_place is None:
        return record, None, []
    queue_order = [job for job, place in (await forecast.get_layout()).places.items() if place.pool == record.pool]
    ahead_ids = queue_order[: queue_order.index(record.id)] if record.id in queue_order else []
    records = await store.query(queries.get_jobs, ahead_ids[:100])
    return record, queue_place.jobs_ahead, [records[job] for job in ahead_ids[:100] if job in records]


def _explanation_text(
    record: JobRecord, ahead_count: int | None, jobs_ahead: Sequence[JobRecord], bot_answer: Mapping[str, Any]
) -> str:
    now = time.time()
    if is_end(record.state):
        time_text = f"{format_duration(now - record.ended)} ago" if record.ended else "already"
        reason_text = f": {record.reason.rstrip('.')}" if record.reason else ""
        was = "was " if record.state == "cancelled" else ""
        return f"It does not wait: it {was}{record.state} {time_text}{shorten(reason_text, 300)}."
    eta = bot_answer.get("eta")
    done = "" if eta is None else f"; done in about {format_duration(float(eta))}"
    if record.cancelling:
        return "It is being cancelled: it ends at its worker's next step, or when its worker is not there any more."
    if record.state == "running":
        step = max(record.step, int(bot_answer.get("step", 0)))
        return f"It does not wait: {record.worker} has it, at step {step} of {record.steps}{done}."
    if record.state == "sent":
        sent_for = format_duration(now - (record.sent or record.created))
        return f"It is on its way to a worker since {sent_for}{done}."
    names = _name_jobs_ahead(jobs_ahead, ahead_count or 0)
    line = f"{format_job_count(ahead_count)} ahead of it{names}" if ahead_count else "Next in line"
    reason = str(bot_answer.get("wait_reason", "")) if bot_answer else NO_BOT_NOTE
    if reason.startswith(("Next in line", f"{ahead_count} ahead")):  # repeats the line above
        reason = "" if ahead_count else "It starts when there is room."
    return f"{line}{done}. {reason}".rstrip()


def _name_jobs_ahead(jobs_ahead: Sequence[JobRecord], ahead_count: int) -> str:
    """Return ": Ann's 01J…, Bob's 01J…, and 2 more"; empty where the queue is too long to be laid out."""
    names = [f"{shorten(record.member_name, 20)}'s {record.id}" for record in jobs_ahead[:MAX_NAMED_JOBS]]
    if ahead_count > len(names) and names:
        names.append(f"and {ahead_count - len(names)} more")
    return f": {', '.join(names)}" if names else ""
