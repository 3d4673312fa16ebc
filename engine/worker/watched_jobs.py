"""Watched jobs: previews are made only for jobs that somebody watches.

Watchers repeat their requests, since nobody reports leaving.
"""

from __future__ import annotations

import asyncio
import logging
import math

from cachetools import TTLCache

from engine.bus import BrokerUnreachable, Bus
from engine.worker.active_runs import ActiveRuns
from engine.worker.run import JobRun

log = logging.getLogger(__name__)

WATCH_SECONDS = 10.0
RETRY_SECONDS = 0.25


class WatchedJobs:
    """Makes the engine watch exactly the jobs that are watched."""

    def __init__(self, bus: Bus, active_runs: ActiveRuns) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._requested_jobs: TTLCache[str, None] = TTLCache(math.inf, WATCH_SECONDS)

    def is_watched(self, job: str) -> bool:
        return job in self._requested_jobs

    async def listen(self) -> None:
        """Receive watch requests, for ever."""
        while True:
            try:
                async for job in self._bus.watch_preview_requests():
                    self._extend_watch(job)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def _extend_watch(self, job: str) -> None:
        self._requested_jobs[job] = None
        run = self._active_runs.get(job)
        if run is not None and not run.is_watched:
            self._set_watched(run, True)

    def drop_expired(self) -> None:
        """Stop watching jobs without a recent request."""
        self._requested_jobs.expire()
        for run in self._active_runs:
            if run.is_watched and not self.is_watched(run.job.id):
                self._set_watched(run, False)

    def _set_watched(self, run: JobRun, is_watched: bool) -> None:
        run.is_watched = is_watched
        self._active_runs.spawn(self._update_engine(run, is_watched))

    async def _update_engine(self, run: JobRun, is_watched: bool) -> None:
        await self._active_runs.thread.call(lambda engine: engine.watch(run.job.id, is_watched))
