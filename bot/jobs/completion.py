"""Ends jobs or queues them again: SQL first, then the active jobs, the feed and the broker's leftovers.

Knows the store, the bus and the feed; decides nothing. It publishes an end to the feed once, after the commit. The
broker is a passage for pictures: one stays there only while a worker or the bot has yet to fetch it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from bot.domain.events import Feed, JobEnded
from bot.domain.job_states import is_end
from bot.jobs.active_jobs import ActiveJobs
from bot.pictures.picture_store import PictureStore
from bot.policy.worker_losses import retry_pause
from bot.store import JobRecord, Store, Transition
from bot.store.jobs import queries
from bot.store.transitions.job_admin import UNREADABLE_TEXT, fail_unreadable_jobs
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Blame, required_blobs

log = logging.getLogger(__name__)

RequeueCause = Literal["lost", "unclaimed", "failed", "incomplete", "operator"]  # why a job is queued again


@dataclass(eq=False)
class JobCompletion:
    """Methods that make a transition return it, or None if the job was over, unknown, or of a newer epoch.

    It calls `on_end` at each end, and `on_requeue` at each requeue.
    """

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    feed: Feed
    blobs: BrokerBlobs
    clock: Callable[[], float] = time.time
    on_end: Callable[[Transition], None] = lambda _: None
    on_requeue: Callable[[RequeueCause], None] = lambda _: None

    async def load_active(self) -> list[JobRecord]:
        """Load the active jobs from SQL, and return sent and running jobs, oldest first. Unreadable jobs fail."""
        for job in await self.store.write(fail_unreadable_jobs, self.clock()):
            log.error("job %s: failed, since its row cannot be read", job)
            self.active_jobs.remove(job)
            self.feed.publish(JobEnded(job, "failed", UNREADABLE_TEXT))
        records = await self.store.query(queries.list_active)
        for record in records:
            if record.id not in self.active_jobs.by_id:
                self.active_jobs.put(record, self.clock())
        return records

    async def fail(self, job: str, reason: str, blame: Blame, *, epoch: int | None = None) -> Transition | None:
        """Fail a job. The reserved cost is refunded unless the member is to blame."""
        actual_cost = None if blame == "member" else 0.0
        transition = await self.store.end_job(
            "fail", job, self.clock(), actual_cost, epoch=epoch, audit_note=blame, reason=reason, blame=blame
        )
        return await self.announce_and_clear(transition)

    async def cancel(
        self,
        job: str,
        actual_cost: float | None,
        *,
        done_share: float = 1.0,
        epoch: int | None = None,
        audit_note: str = "",
    ) -> Transition | None:
        """Cancel a job, and charge `actual_cost` device-seconds; None: `done_share` of its price."""
        transition = await self.store.end_job(
            "cancel", job, self.clock(), actual_cost, done_share=done_share, epoch=epoch, audit_note=audit_note
        )
        return await self.announce_and_clear(transition)

    async def request_cancel(self, job: str) -> JobRecord | None:
        """Cancel a waiting job at once, or flag a sent one. Return the job now, None if unknown."""
        record, transition = await self.store.request_cancel(job, self.clock())
        await self.announce_and_clear(
            transition, tombstone=transition is not None and transition.record.epoch > 0
        )  # an earlier worker may still run it
        return record

    async def requeue(
        self,
        job: str,
        *,
        step: int,
        audit_note: str,
        reason: str = "",
        epoch: int | None = None,
        cause: RequeueCause = "failed",
        is_suspect: bool = True,
    ) -> Transition | None:
        """Queue a job again, after a pause if many attempts made no progress, or fail it after too many of them.

        `is_suspect`: False if nothing points at the job.
        """
        transition = await self.store.requeue_job(
            job, self.clock(), step=step, audit_note=audit_note, reason=reason, epoch=epoch, is_suspect=is_suspect
        )
        if transition is None or is_end(transition.record.state):
            return await self.announce_and_clear(transition)
        await self.announce_requeue(transition.record, audit_note, cause)
        return transition

    async def announce_requeue(self, record: JobRecord, audit_note: str, cause: RequeueCause) -> None:
        """Tell active jobs, broker and listeners that SQL has queued a job again."""
        active_job = self.active_jobs.by_id.get(record.id)
        if (
            active_job is not None and active_job.record.attempt < record.attempt
        ):  # otherwise the dispatcher has sent this attempt meanwhile
            self.active_jobs.remove(record.id)
        pause = retry_pause(record.id, record.attempts_without_progress)
        self.active_jobs.next_attempt_at.pop(record.id, None)
        if pause:
            self.active_jobs.next_attempt_at[record.id] = self.clock() + pause
        self.on_requeue(cause)
        log.warning(
            "job %s: queued again as attempt %d, after %.0f s: %s", record.id, record.attempt, pause, audit_note
        )
        await self.clear_attempt(replace(record, attempt=record.attempt - 1))
        self.active_jobs.on_rows_freed()

    async def revoke_claim(self, job: str, epoch: int) -> None:
        """Revoke the claim of this epoch. Its worker stops at its next heartbeat without a report."""
        try:
            await self.bus.revoke_claim(job, epoch)
        except BrokerUnreachable as error:  # the worker continues, and its results are accepted
            log.warning("job %s: %s", job, error)

    async def announce_and_clear(self, transition: Transition | None, *, tombstone: bool = False) -> Transition | None:
        """Announce a committed end and clear the broker; None passes through."""
        if transition is None:
            return None
        self.announce_end(transition)
        await self.clear_broker(transition.record, tombstone=tombstone)
        return transition

    def announce_end(self, transition: Transition) -> None:
        """Announce a committed end to active jobs, feed and listeners."""
        record = transition.record
        self.active_jobs.remove(record.id)
        self.active_jobs.next_attempt_at.pop(record.id, None)
        self.on_end(transition)
        self.feed.publish(JobEnded(record.id, record.state, record.reason))
        self.active_jobs.on_rows_freed()
        log.info("job %s: %s %s", record.id, record.state, record.reason)

    async def clear_attempt(self, record: JobRecord) -> None:
        """Remove one attempt's message from the broker, but not the next attempt's, which may follow at any moment."""
        try:
            await self.bus.remove_dispatched(record.to_job())
        except BrokerUnreachable as error:  # two attempts are queued; the claim lets only one run
            log.warning("job %s: %s", record.id, error)

    async def clear_broker(self, record: JobRecord, *, tombstone: bool = False) -> None:
        """Remove a job's messages and input pictures from the broker. `tombstone`: also stop a worker that runs it."""
        try:
            if tombstone:
                await self.bus.cancel(record.id)
            await self.bus.remove_dispatched(record.to_job(), every_attempt=True)
            await self.blobs.drop(required_blobs(record.task))
        except BrokerUnreachable as error:
            log.warning("job %s: %s", record.id, error)


class BrokerBlobs:
    """Each blob is put and dropped in turn, under the lock of its content. Run `run` as a task."""

    def __init__(self, bus: Bus, pictures: PictureStore, active_jobs: ActiveJobs) -> None:
        self._bus = bus
        self._pictures = pictures
        self._active_jobs = active_jobs
        self._ingested: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Drop the blobs of ingested results, one by one, until cancelled: no result waits for that."""
        while True:
            sha256 = await self._ingested.get()
            try:
                if await self._pictures.has(sha256):  # a refused result may be another attempt's, too
                    await self._drop(sha256, self._bus.drop_read_blob)
            except OSError as error:
                log.warning("picture %s stays at the broker for a day at most: %s", sha256, error)

    async def put(self, sha256: str) -> None:
        """Put a stored picture at the broker. Raises `BrokerUnreachable`, `ContentMissing`, `OSError`."""
        async with self._pictures.lock(sha256):
            await self._bus.put_blob(await self._pictures.get(sha256))

    def drop_soon(self, hashes: Iterable[str]) -> None:
        """Let `run` drop the blobs of ingested results, of those that are stored."""
        for sha256 in set(hashes):
            self._ingested.put_nowait(sha256)

    async def drop(self, hashes: Iterable[str]) -> None:
        """Drop blobs, except the inputs of active jobs. The broker drops what is left within a day."""
        for sha256 in set(hashes):
            await self._drop(sha256, self._bus.drop_blob)

    async def _drop(self, sha256: str, drop_blob: Callable[[str], Awaitable[None]]) -> None:
        async with self._pictures.lock(sha256):
            if self._active_jobs.needs_blob(sha256):
                return
            try:
                await drop_blob(sha256)
            except BrokerUnreachable as error:
                log.warning("picture %s stays at the broker for a day at most: %s", sha256, error)
