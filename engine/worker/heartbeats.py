"""Heartbeats: renews each run's message and claim every few seconds, while the work makes progress.

A stuck worker must not look alive: its heartbeat raises `Stuck`, the process ends, and other workers take its jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.bus import BrokerUnreachable, Bus
from engine.worker.active_runs import ActiveRuns
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import JobRun
from engine.worker.watchdog import Watchdog

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25


class Stuck(RuntimeError):
    """The engine or the decode worker missed a deadline or crashed: the process must be restarted."""


class Heartbeats:
    """Heartbeats, and the tombstones that cancel a run."""

    def __init__(
        self, bus: Bus, active_runs: ActiveRuns, result_publisher: ResultPublisher, watchdog: Watchdog
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._result_publisher = result_publisher
        self._watchdog = watchdog

    async def renew_runs(self) -> None:
        """Renew for ever. Raises `Stuck` when a deadline was missed."""
        while True:
            if (missed_deadline := self._watchdog.find_missed_deadline()) is not None:
                raise Stuck(missed_deadline)
            await asyncio.gather(*(self._renew_run(run) for run in self._active_runs))
            self._active_runs.presence_changed.set()
            await asyncio.sleep(self._bus.limits.renewal_interval)

    async def _renew_run(self, run: JobRun) -> None:
        try:
            for handle in list(run.handles.values()):
                await handle.in_progress()
            request_time = time.monotonic()
            if await self._bus.renew_claim(run.claim):
                run.renewal_time = request_time
            elif run in self._active_runs:
                abandonment = self._active_runs.abandon(run, "its claim has lapsed or gone to another worker")
                self._active_runs.spawn(abandonment)  # it waits for the engine's current step; the heartbeat must not
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def watch_cancels(self) -> None:
        """Receive cancels, for ever."""
        while True:
            try:
                async for job in self._bus.watch_cancelled():
                    self._cancel_run(job)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def recheck_cancels(self) -> None:
        """Check every run for a cancel that was missed during an outage."""
        for run in self._active_runs:
            if await self._bus.is_cancelled(run.job.id):
                self._cancel_run(run.job.id)

    def _cancel_run(self, job: str) -> None:
        run = self._active_runs.get(job)
        if run is not None and run.try_end():
            self._active_runs.spawn(self._finish_cancel(run))

    async def _finish_cancel(self, run: JobRun) -> None:
        try:
            steps = await self._active_runs.stop_run(run)
            await self._result_publisher.publish_cancelled(run, min(steps, run.end_step))
        except BrokerUnreachable as error:
            await self._active_runs.abandon(run, str(error))
