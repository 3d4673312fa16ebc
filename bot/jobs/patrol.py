"""The patrol: finds jobs whose worker or message was lost, that exceed their deadline, or whose cancel got no answer.

Knows the active jobs, the claims on the bus, and time; makes every transition through `JobCompletion`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bot.domain.job_states import ACTIVE_STATES, is_end
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.jobs.completion import JobCompletion
from bot.jobs.model_catalog import group_by_pool
from bot.policy.worker_losses import is_on_probation
from bot.store import DatabaseUnavailable, JobRecord, Store, Transition
from bot.store.jobs import queries
from engine.bus import BrokerUnreachable, Bus
from engine.process.log_format import log_context

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
WAITED_TOO_LONG = "It waited too long for a worker; nothing was charged."
RAN_TOO_LONG = "It was not done in time; nothing was charged."


@dataclass(eq=False)
class Patrol:
    """Run `run` as a task. `lease`: seconds that a claim lasts without a renewal."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    completion: JobCompletion
    submit: Callable[[JobRecord], Awaitable[None]]
    lease: float = 10.0
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._checked_at: dict[str, float] = {}  # when a silent job's claim was last looked up
        self._orphaned_since: dict[str, float] = {}  # since when a job has had no claim

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        while True:
            await asyncio.sleep(min(INTERVAL_SECONDS, self.lease / 4))
            try:
                await self.run_round()
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("patrol: %s", error)
                self._orphaned_since.clear()  # no worker could renew a claim meanwhile
                self.active_jobs.losses.record_outage(self.clock())

    async def run_round(self) -> None:
        """Check all jobs once. Raises `BrokerUnreachable` and `DatabaseUnavailable`."""
        for record in await self.store.query(queries.list_expired, self.clock()):
            await self._fail_expired(record)
        for active_job in list(self.active_jobs.by_id.values()):
            if self._is_check_due(active_job):
                with log_context(active_job.record.id, active_job.record.worker):
                    await self._check_claim(active_job)
        for times in (self._checked_at, self._orphaned_since):
            for job in [job for job in times if job not in self.active_jobs.by_id]:
                del times[job]

    async def _fail_expired(self, record: JobRecord) -> None:
        if await self.completion.fail(record.id, RAN_TOO_LONG if record.started else WAITED_TOO_LONG, "us"):
            await self.completion.clear_broker(record, tombstone=True)

    def _is_check_due(self, active_job: ActiveJob) -> bool:
        """Return True if its claim is due for a check: often for a cancelling or orphaned job, else once a lease."""
        job = active_job.record.id
        now = self.clock()
        interval = self.lease / 4 if active_job.record.cancelling or job in self._orphaned_since else self.lease
        return now - max(active_job.last_heartbeat, self._checked_at.get(job, 0.0)) >= interval

    async def _check_claim(self, active_job: ActiveJob) -> None:
        job = active_job.record.id
        now = self.clock()
        self._checked_at[job] = now
        if job in self.active_jobs.next_attempt_at and not active_job.record.cancelling:
            await self._end_pause(active_job)
            return
        if await self.bus.get_holder(job) is not None:
            active_job.last_heartbeat = now
            self._orphaned_since.pop(job, None)
            if active_job.record.cancelling:
                await self.bus.cancel(job)
            return
        orphaned_seconds = now - self._orphaned_since.setdefault(job, now)
        if orphaned_seconds >= self.lease / 2 and await self._drop_if_inactive(active_job):
            return
        if active_job.record.cancelling:
            if orphaned_seconds >= self.lease / 4:
                await self.completion.cancel(job, None, done_share=active_job.done_share, audit_note="nobody runs it")
        elif self.active_jobs.results_behind_until > now:  # its worker may have released the claim: job done
            self._orphaned_since[job] = now
        elif active_job.is_claimed and active_job.record.worker:
            await self._requeue_lost(active_job, orphaned_seconds)
        else:
            await self._handle_unclaimed(active_job, orphaned_seconds)

    async def _drop_if_inactive(self, active_job: ActiveJob) -> bool:
        """Drop a job that is not active in SQL, and return True: a reply of the database was lost for too long."""
        record = await self.store.get_job(active_job.record.id)
        if record is not None and record.state in ACTIVE_STATES:
            return False
        log.warning(
            "job %s: it is %s, which was not announced", active_job.record.id, record.state if record else "deleted"
        )
        self.active_jobs.remove(active_job.record.id)
        if record is not None and is_end(record.state):
            self.completion.announce_end(Transition(record, active_job.record.state))
        self.active_jobs.on_rows_freed()
        return True

    async def _end_pause(self, active_job: ActiveJob) -> None:
        """Submit a job once the pause before its next attempt is over."""
        job = active_job.record.id
        now = self.clock()
        self._orphaned_since[job] = now
        if self.active_jobs.next_attempt_at[job] <= now:
            del self.active_jobs.next_attempt_at[job]
            await self.submit(active_job.record)

    async def _requeue_lost(self, active_job: ActiveJob, orphaned_seconds: float) -> None:
        """Queue a job again if it has had no claim for three leases. The broker should redeliver it within one.

        It does not redeliver a job on probation, so one lease is enough there.
        """
        record = active_job.record
        pool_info = group_by_pool(self.bus.workers).get(active_job.record.pool)
        if (
            orphaned_seconds >= (1 if is_on_probation(record.attempts_without_progress) else 3) * self.lease
            and pool_info is not None
            and not pool_info.is_full(active_job.record.model)
        ):
            await self.completion.requeue(
                record.id,
                step=active_job.step,
                audit_note=f"{record.worker} lost it",
                cause="lost",
                is_suspect=self.active_jobs.record_loss(active_job, self.clock()),
            )

    async def _handle_unclaimed(self, active_job: ActiveJob, orphaned_seconds: float) -> None:
        """Publish an unclaimed job again, later requeue it: the broker may have lost it, or workers are busy."""
        pool_info = group_by_pool(self.bus.workers).get(active_job.record.pool)
        if pool_info is None or pool_info.is_full(active_job.record.model):
            self._orphaned_since[active_job.record.id] = self.clock()
        elif orphaned_seconds >= 6 * self.lease:
            await self.completion.requeue(
                active_job.record.id,
                step=active_job.step,
                audit_note="no worker took it",
                cause="unclaimed",
                is_suspect=False,
            )
        elif orphaned_seconds >= self.lease:
            await self.submit(active_job.record)
