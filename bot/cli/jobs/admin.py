"""Jobs in the store, for `darkroom jobs`: finds them by the beginning of an id, reads and changes them.

Every mistake is a `UserError` with one sentence. Prints nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from bot.cli.store_session import load_store_settings, run_with_store
from bot.domain.dto import Delivery
from bot.domain.errors import UserError
from bot.domain.job_states import END_STATES, OPEN_STATES, JobState, is_end
from bot.domain.texts import format_duration, shorten
from bot.store import JobRecord, Store, StoredPicture
from bot.store.jobs import destinations, queries
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from bot.store.transitions.job_admin import JobFilter

T = TypeVar("T")
ID_PREFIX = re.compile(r"[0-9A-Z]{1,26}")
STATE_GROUPS: Mapping[str, tuple[JobState, ...]] = {"open": OPEN_STATES, "over": END_STATES}
NEVER_STARTED = "cancelled before it began; nothing was charged."


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
    return run_on_folder_store(
        data,
        lambda store: store.query(job_admin.list_jobs, JobFilter(wanted_states, guild, member, limit, oldest_first)),
    )


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
        ids = [record.id]
        deliveries = [
            *(await store.query(destinations.list_deliveries, record.id)).values(),
            *await store.query(destinations.list_films, record.id),
        ]
        return JobDetails(
            record,
            await store.query(queries.list_audit, ids),
            deliveries,
            await store.query(queries.list_pictures, ids),
        )

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
        outcome = NEVER_STARTED if updated.started is None else f"cancelled; {_describe_charge(updated.charged)}."
        return f"Job {record.id}: {outcome}"

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
        raise UserError(f"Too late: job {record.id} has {_past_tense(record.state)} already.")


def _past_tense(state: JobState) -> str:
    return "been cancelled" if state == "cancelled" else state


def _describe_charge(charged: float) -> str:
    return f"{format_duration(charged)} of device time were charged" if charged else "nothing was charged"


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
