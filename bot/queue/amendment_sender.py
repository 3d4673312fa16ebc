"""Sends the changes of running jobs to their workers, again and again until each is answered.

SQL has what was asked for; this task repeats it about every second, at once for a new request or claim. A lost message
does no harm, since a worker makes a repeated change once. Knows the store, the bus and the active jobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from bot.queue.active_jobs import ActiveJobs
from bot.store import DatabaseUnavailable, Store
from bot.store.jobs.amendments import AmendmentRecord, list_jobs_with_waiting, list_waiting
from engine.bus import BrokerUnreachable, Bus
from engine.contract import MAX_AMENDMENTS_AT_ONCE, AmendJob, AmendmentRequest

log = logging.getLogger(__name__)

REPEAT_SECONDS = 1.0


class AmendmentSender:
    """Run `run` as a task."""

    def __init__(self, store: Store, bus: Bus, active_jobs: ActiveJobs) -> None:
        self._store = store
        self._bus = bus
        self._active_jobs = active_jobs
        self._waiting: set[str] | None = None  # jobs that may have waiting changes; None: SQL knows
        self._woken: set[str] = set()
        self._wake_event = asyncio.Event()

    def wake(self, job: str) -> None:
        """Send a job's waiting changes now."""
        self._woken.add(job)
        self._wake_event.set()

    async def run(self) -> None:
        """Send until cancelled. Wait out an outage of broker or database."""
        repeat_at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            is_repeat = now >= repeat_at
            try:
                await self.run_round(is_repeat=is_repeat)
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("changes: %s", error)
            repeat_at = now + REPEAT_SECONDS if is_repeat else repeat_at
            await self._wait(repeat_at)

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._wake_event.wait()
        except TimeoutError:
            return

    async def run_round(self, *, is_repeat: bool = True) -> None:
        """Send the waiting changes of the woken jobs, or of all. Raises `BrokerUnreachable`, `DatabaseUnavailable`."""
        self._wake_event.clear()
        if self._waiting is None:
            self._waiting = set(await self._store.query(list_jobs_with_waiting))
        woken = self._woken
        self._woken = set()
        self._waiting |= woken
        jobs = self._waiting if is_repeat else woken
        if not jobs:
            return
        by_job = await self._store.query(list_waiting, sorted(jobs))
        self._waiting -= jobs - by_job.keys() - self._woken
        for job, waiting in by_job.items():
            await self._send(job, waiting)

    async def _send(self, job: str, waiting: Sequence[AmendmentRecord]) -> None:
        """Send a job's changes to the claim that we know. Without one they wait for the next."""
        active_job = self._active_jobs.by_id.get(job)
        if active_job is None or not active_job.is_claimed:
            return
        requests = tuple(AmendmentRequest(each.number, each.change) for each in waiting[:MAX_AMENDMENTS_AT_ONCE])
        record = active_job.record
        await self._bus.send_amendments(record.pool, AmendJob(job=job, epoch=record.epoch, requests=requests))
