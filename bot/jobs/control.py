"""Control of jobs that wait or run: cancel, pause, resume, priority; and the cancels that come from elsewhere.

A cancel is one UPDATE while a job waits; once sent, a flag in SQL and a tombstone on the broker for its worker. Closed
servers and `darkroom jobs` change SQL from outside: watchers tell the broker and the workers within seconds. Only
`JobControl`, which members use, checks permissions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast

from bot.domain.concurrency import run_periodically
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.job_states import JobState, is_end
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.completion import JobCompletion
from bot.jobs.model_catalog import group_by_pool
from bot.jobs.views import JobViews, make_job_ref
from bot.policy.permissions import Action, forbidden_reason
from bot.policy.rules import EVERYWHERE
from bot.store import JobRecord, Store, Transition, rules
from bot.store.jobs import queries
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from engine.bus import BrokerUnreachable, Bus
from engine.contract import MAX_PACE_SECONDS, ControlMessage, Presence, Recipe
from engine.process.log_format import log_context

log = logging.getLogger(__name__)


@dataclass(eq=False)
class JobCanceller:
    """Cancels one job at a time, whoever asks."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    completion: JobCompletion
    workers: Callable[[], Mapping[str, Presence]]

    async def cancel(self, job: str) -> str:
        """Cancel a job, and return a sentence on the outcome. Raises `UserError` (404) for an unknown job."""
        record = await self.completion.request_cancel(job)
        if record is None:
            raise UserError("There is no such job.", 404)
        if record.state == "cancelled":
            return "Cancelled before it began; nothing was charged." if record.started is None else "Cancelled."
        if is_end(record.state):
            return f"Too late: it has {record.state} already."
        active_job = self.active_jobs.by_id.get(job)
        if active_job is not None:
            active_job.record = record
        try:
            await self.bus.cancel(job)
        except BrokerUnreachable as error:  # SQL has the flag, and the patrol repeats the tombstone
            log.warning("job %s: %s", job, error)
        if record.pool not in group_by_pool(self.workers()):
            done_share = active_job.done_share if active_job else 0.0
            await self.completion.cancel(job, None, done_share=done_share, audit_note="no worker is alive")
            return "Cancelled; no worker was online."
        return "Cancelling: it stops at its next step, and only the steps it ran are charged."


PAUSED_TEXT = "Paused: it keeps its place, and resumes by itself after 15 minutes, or sooner if others need the room."
RESUMED_TEXT = "Resumed."
PRIORITY_TEXT = "Its priority among the author's jobs is now {:g}."
UPSCALE_TEXT = "An upscale is done in one go, so it cannot be paused or prioritised."
WAITING_TEXT = "It has not begun, so it cannot be paused or prioritised yet."
BROKER_AWAY_TEXT = "The workers cannot be reached just now. Try again in a moment."


@dataclass(eq=False)
class JobControl:
    """What members do to jobs under way. Methods return a sentence, or raise `UserError`."""

    bus: Bus
    active_jobs: ActiveJobs
    job_views: JobViews
    canceller: JobCanceller
    clock: Callable[[], float] = time.time

    async def cancel(self, job: str, member: Member) -> str:
        """Cancel the member's own job, or as a moderator one of their guild."""
        await self._load_permitted(job, "cancel", member)
        return await self.canceller.cancel(job)

    async def pause(self, job: str, member: Member) -> str:
        """Pause a running job, for a quarter of an hour at most. It needs the permission to cancel.

        Nothing stores it: a job that moves to another worker runs on. A second pause gets the remaining time of the
        first.
        """
        record = await self._load_permitted(job, "pause", member)
        await self._send(record, ControlMessage(job=job, action="pause"))
        self.active_jobs.paused_since.setdefault(job, self.clock())
        return PAUSED_TEXT

    async def resume(self, job: str, member: Member) -> str:
        """End the pause of a job."""
        record = await self._load_permitted(job, "pause", member)
        await self._send(record, ControlMessage(job=job, action="resume"))
        self.active_jobs.paused_since.pop(job, None)
        return RESUMED_TEXT

    async def set_priority(self, job: str, weight: float) -> str:
        """Set a running job's weight among its author's jobs: above 0, at most 1000, default 1.

        For the operator. Nothing stores it.
        """
        await self._send(await self.job_views.load_record(job), ControlMessage(job=job, action="weigh", weight=weight))
        return PRIORITY_TEXT.format(weight)

    async def set_pace(self, record: JobRecord, seconds: float) -> None:
        """Let the job's steps begin at least so many seconds apart; 0: as soon as they can."""
        await self._send(record, ControlMessage(job=record.id, action="pace", pace=min(seconds, MAX_PACE_SECONDS)))

    async def _load_permitted(self, job: str, action: Action, member: Member) -> JobRecord:
        record = await self.job_views.load_record(job)
        if reason := forbidden_reason(action, member, make_job_ref(record)):
            raise UserError(reason, 403)
        return record

    async def _send(self, record: JobRecord, message: ControlMessage) -> None:
        if not isinstance(record.task, Recipe):
            raise UserError(UPSCALE_TEXT)
        if is_end(record.state):
            raise UserError(f"Too late: it has {record.state} already.")
        if record.state != "running":
            raise UserError(WAITING_TEXT)
        try:
            await self.bus.send_control(message)
        except BrokerUnreachable as error:
            raise UserError(BROKER_AWAY_TEXT) from error


INTERVAL_SECONDS = 1.0


class ClosedGuildWatcher:
    """Run `run` as a task. `cancel` cancels one job and returns a sentence on the outcome."""

    def __init__(self, store: Store, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store = store
        self._cancel = cancel
        self._closed_guilds: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "closed servers", log)

    async def run_round(self) -> None:
        """Cancel open jobs in servers that were already closed a round ago, so that `/settings close` comes first."""
        closed_before = self._closed_guilds
        self._closed_guilds = (await self._store.query(rules.load_guild_limits)).closed_guilds
        for guild in sorted(self._closed_guilds & closed_before):
            job_ids = await self._store.query(queries.list_open_ids, None if guild == EVERYWHERE else guild)
            for job in job_ids:
                await self._cancel(job)
            if job_ids:
                log.info("%d jobs of a closed server were cancelled", len(job_ids))


class ExternalChangeWatcher:
    """Run `run` as a task. `cancel` cancels one job that a worker may have."""

    def __init__(self, store: Store, completion: JobCompletion, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store = store
        self._completion = completion
        self._cancel = cancel
        self._last_line: int | None = None  # the last audit line that was handled
        self._handled: set[tuple[int, float]] = set()  # handled lines just before it: number and time

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "outside changes", log)

    async def prepare(self) -> None:
        """Start at the current audit line: the bot reads earlier changes from the tables."""
        self._last_line, entries = await self._store.query(
            job_admin.list_external_changes, await self._store.query(job_admin.read_last_line)
        )
        self._handled = _line_keys(entries)

    async def run_round(self) -> None:
        """Handle all outside changes since the last round."""
        if self._last_line is None:
            await self.prepare()
            return
        last_line, entries = await self._store.query(job_admin.list_external_changes, self._last_line)
        for number, entry in entries.items():
            if (number, entry.created_at) not in self._handled:
                with log_context(entry.job):
                    await self._apply_change(entry)
                self._handled.add((number, entry.created_at))
        self._last_line, self._handled = last_line, self._handled & _line_keys(entries)

    async def _apply_change(self, entry: AuditEntry) -> None:
        record = await self._store.get_job(entry.job)
        if record is None:
            return
        self._store.version += 1  # another process changed the queue
        if entry.reason == job_admin.CANCEL_NOTE:
            log.info("job %s: %s", entry.job, entry.reason)
        if entry.reason == job_admin.CANCEL_NOTE and record.state == "cancelled" and entry.target == "cancelled":
            self._completion.announce_end(Transition(record, cast(JobState, entry.source)))
            await self._completion.clear_broker(record, tombstone=True)
        elif entry.reason == job_admin.CANCEL_NOTE and not is_end(record.state):
            await self._cancel(entry.job)
        elif entry.reason == job_admin.REQUEUE_NOTE and record.attempt == entry.attempt and not is_end(record.state):
            await self._completion.announce_requeue(record, entry.reason, "operator")
            if entry.epoch:  # the old claim; another worker may have a new one by now
                await self._completion.revoke_claim(record.id, entry.epoch)


def _line_keys(entries: Mapping[int, AuditEntry]) -> set[tuple[int, float]]:
    return {(number, entry.created_at) for number, entry in entries.items()}
