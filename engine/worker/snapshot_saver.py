"""Saves the progress of runs: snapshots every two seconds, and the hand-over when this worker stops."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from cachetools import TTLCache

from engine.bus import BrokerUnreachable, Bus, StaleEpoch
from engine.contract import Snapshot
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobEngine, JobRun, receive_regularly
from engine.worker.run_control import store_amendment_log

log = logging.getLogger(__name__)

SAVE_INTERVAL_SECONDS = 2.0
HAND_BACK_TIMEOUT_SECONDS = 1.0
SAVE_TIMEOUT_SECONDS = 0.7
MAX_CONCURRENT_WRITES = 4  # concurrent writes


class SnapshotSaver:
    """Snapshots of all runs, taken between two steps and stored off the engine's thread."""

    def __init__(
        self, bus: Bus, active_runs: ActiveRuns, result_publisher: ResultPublisher, watched_jobs: WatchedJobs
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._result_publisher = result_publisher
        self._watched_jobs = watched_jobs
        self._write_slots = asyncio.Semaphore(MAX_CONCURRENT_WRITES)

    async def save_regularly(self) -> None:
        """Save new progress regularly, for ever."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL_SECONDS)
            self._watched_jobs.drop_expired()
            await self._save_runs([run for run in self._active_runs if run.has_unsaved_steps and not run.is_ended])

    async def _save_runs(self, runs: Sequence[JobRun]) -> None:
        """Take all snapshots between two steps: one after another, those of a full worker would be seconds old."""
        if runs:
            snapshots = await self._take_snapshots(runs)
            await asyncio.gather(*(self._store_snapshots(run, each) for run, each in zip(runs, snapshots, strict=True)))

    async def _take_snapshots(self, runs: Sequence[JobRun], *, is_last: bool = False) -> list[list[Snapshot]]:
        """Return the snapshots of each run. `is_last`: also pause the runs, so that no further step runs."""

        def take_between_steps(engine: JobEngine) -> list[list[Snapshot]]:
            for run in runs if is_last else ():
                engine.pause(run.job.id)
            return [engine.take_snapshots(run.job.id, run.claim.epoch) for run in runs]

        return await self._active_runs.thread.call(take_between_steps)

    async def _store_snapshots(self, run: JobRun, snapshots: Sequence[Snapshot]) -> None:
        """Store a run's snapshots. Few writes run at a time, since heartbeats share the connection.

        What they may hold already is stored before: a change without its step would be missing in the recipe.
        """
        try:
            if not run.is_ended:
                await store_amendment_log(self._bus, run)
            results = await asyncio.gather(
                *(self._put_snapshot(run, snapshot) for snapshot in snapshots), return_exceptions=True
            )
            for error in results:
                if error is not None:
                    raise error
        except StaleEpoch as error:
            await self._active_runs.abandon(run, str(error))
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def _put_snapshot(self, run: JobRun, snapshot: Snapshot) -> None:
        """Store a snapshot unless our lease may have expired: the next owner may have dropped the snapshots."""
        async with self._write_slots:
            if not run.is_ended and time.monotonic() - max(run.start_time, run.renewal_time) < self._bus.limits.lease:
                await self._bus.put_snapshot(snapshot)
                run.steps_saved[snapshot.image] = snapshot.next_step

    async def hand_back_all(self) -> None:
        """Snapshot, release and hand back every run, so that another worker continues from the same step."""
        runs = list(self._active_runs)
        try:
            async with asyncio.timeout(HAND_BACK_TIMEOUT_SECONDS):
                snapshots = await self._take_last_snapshots(runs)
                await asyncio.gather(*(self._hand_back(run, each) for run, each in zip(runs, snapshots, strict=True)))
        except TimeoutError as error:
            log.warning("not every job could be handed back in time: %r", error)

    async def _take_last_snapshots(self, runs: Sequence[JobRun]) -> list[list[Snapshot]]:
        """Return last snapshots; none where a long step runs or the engine fails: earlier ones count then."""
        try:
            async with asyncio.timeout(SAVE_TIMEOUT_SECONDS):
                return await self._take_snapshots(runs, is_last=True)
        except TimeoutError:
            log.warning("a long step is running, so jobs continue from earlier snapshots")
        except Exception:
            log.exception("no last snapshots could be taken")
        return [[] for _ in runs]

    async def _hand_back(self, run: JobRun, snapshots: Sequence[Snapshot]) -> None:
        """Hand back one run; its errors do not affect the others."""
        try:
            async with asyncio.timeout(SAVE_TIMEOUT_SECONDS):
                await self._store_snapshots(run, snapshots)
        except TimeoutError:
            log.warning("job %s continues from an earlier snapshot", run.job.id)
        try:
            await self._release_run(run)
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def _release_run(self, run: JobRun) -> None:
        if run.try_end():
            self._active_runs.cancel_tasks(run)
            await self._result_publisher.hand_back(run)
        elif run.tasks:  # its result is being published
            await asyncio.wait(run.tasks, timeout=SAVE_TIMEOUT_SECONDS)


WATCH_SECONDS = 10.0


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
        await receive_regularly(self._bus.watch_preview_requests, self._extend_watch)

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
