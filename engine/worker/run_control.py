"""What people ask of running jobs (pauses, weights, paces, changes, previews), and the snapshots that keep it.

Pauses, weights and paces are not stored: a job that moves to another worker runs on there. A paused job keeps its
claim, its snapshots and its place, while other jobs use its rows.

The answer to a change follows three things: the engine holds the change, the broker stores it beside the snapshots, and
our claim still holds. So the next worker of the job, which reads them after it has claimed the job, goes on with every
change that was answered. A repeated request is answered again, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from cachetools import TTLCache

from engine.bus import BrokerUnreachable, Bus, StaleEpoch
from engine.contract import AmendJob, AmendmentRequest, ControlMessage, JobAmended, JobRejected, Recipe, Snapshot
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobEngine, JobRun, receive_regularly

log = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 900.0  # sum of a job's pauses
MAX_PACED_SECONDS = 3600.0  # a pace lets a job last so long at most, from when it is set
CHECK_SECONDS = 0.5  # seconds between checks whether another model needs the memory of a paused job's


class RunControl:
    """Ignores messages about jobs that are not here.

    `is_memory_contended`: whether a job has waited long enough for memory that models in use occupy. Then every pause
    and every pace ends.
    """

    def __init__(
        self, bus: Bus, active_runs: ActiveRuns, is_memory_contended: Callable[[], bool] = lambda: False
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._is_memory_contended = is_memory_contended

    async def listen(self) -> None:
        """Receive pauses and weights, for ever."""
        self._active_runs.spawn(self._end_pauses_for_memory())
        await receive_regularly(self._bus.watch_control_messages, self._apply_message)

    async def _end_pauses_for_memory(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for run in self._active_runs if self._is_memory_contended() else ():
                if (run.pause_timer is not None or run.pace) and run.model_in_use:
                    run.set_pace(0.0)
                    self._end_pause(run)

    def _apply_message(self, message: ControlMessage) -> None:
        run = self._active_runs.get(message.job)
        if run is None or run.is_ended or not isinstance(run.job.task, Recipe):
            return
        if message.action == "weigh":
            run.weight = message.weight
        elif message.action == "pace":
            run.set_pace(min(message.pace, MAX_PACED_SECONDS / max(1, run.evaluations_left)))
        elif message.action == "pause":
            self._pause(run)
        else:
            _unpause(run)
        self._active_runs.presence_changed.set()  # a paused job's rows are free
        self._active_runs.spawn(self._update_engine(run))

    def _pause(self, run: JobRun) -> None:
        """Pause a run; all its pauses share one time limit."""
        seconds_left = MAX_PAUSE_SECONDS - run.paused_seconds
        if run.pause_timer is None and seconds_left > 0:
            run.pause_timer = asyncio.get_running_loop().call_later(seconds_left, self._end_pause, run)

    def _end_pause(self, run: JobRun) -> None:
        _unpause(run)
        if run in self._active_runs and not run.is_ended:
            log.info("job %s resumes: its pause was too long, or other models need the memory of its model", run.job.id)
            self._active_runs.presence_changed.set()
            self._active_runs.spawn(self._update_engine(run))

    async def _update_engine(self, run: JobRun) -> None:
        """Apply the run's state when the engine gets to it, so the order of two calls does not matter."""
        await self._active_runs.thread.call(run.apply_control)


def _unpause(run: JobRun) -> None:
    if run.pause_timer is not None:
        seconds_left = run.pause_timer.when() - asyncio.get_running_loop().time()
        run.paused_seconds = MAX_PAUSE_SECONDS - max(0.0, seconds_left)
        run.pause_timer.cancel()
        run.pause_timer = None
        run.last_step_time = time.monotonic()  # the pause must not count in its pace


REFUSED_EARLIER = "This change could not be made."
PrepareTexts = Callable[[JobRun, AmendmentRequest], Awaitable[None]]
OnMade = Callable[[JobRun], None]


async def store_amendment_log(bus: Bus, run: JobRun) -> None:
    """Store what has been changed of a run, unless that is stored; one write at a time, so that the newest is last."""
    async with run.amendment_log_lock:
        if not run.is_amendment_log_stored:
            amendment_log = run.make_amendment_log()
            await bus.put_amendment_log(amendment_log)
            run.is_amendment_log_stored = run.last_amendment == amendment_log.last_number


class AmendmentService:
    """Ignores messages about jobs that are not here, or are here under another claim.

    `pools`: the worker's. `prepare_texts` encodes the texts of a change beside the running batch. Raises `JobRejected`.
    `on_made`: called when the next step of a run follows a change.
    """

    def __init__(
        self,
        bus: Bus,
        active_runs: ActiveRuns,
        result_publisher: ResultPublisher,
        pools: Sequence[str],
        prepare_texts: PrepareTexts,
        on_made: OnMade,
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._result_publisher = result_publisher
        self._pools = pools
        self._prepare_texts = prepare_texts
        self._on_made = on_made

    async def listen(self) -> None:
        """Receive changes, for ever."""
        await receive_regularly(lambda: self._bus.watch_amendments(self._pools), self._receive)

    def _receive(self, message: AmendJob) -> None:
        run = self._active_runs.get(message.job)
        if run is not None and run.claim.epoch == message.epoch and run.start_announced.is_set():
            run.newest_changes = message
            if not run.amendment_lock.locked():  # else whoever holds it reads the message, too
                self._active_runs.spawn(self._amend(run), run)

    async def _amend(self, run: JobRun) -> None:
        """Make the changes of the newest message, until there is no newer one: it has all that wait for an answer."""
        async with run.amendment_lock:
            while (message := run.newest_changes) is not None:
                run.newest_changes = None
                await self._make_changes(run, message)

    async def _make_changes(self, run: JobRun, message: AmendJob) -> None:
        for request in message.requests:
            if run.is_ended:
                return
            try:
                if request.number > run.last_amendment:
                    await self._apply(run, request)
                await self._answer(run, request.number)
            except KeyError:  # the engine has yet to admit the job, or no longer has it: the bot asks again
                return
            except BrokerUnreachable as error:  # the bot asks again
                log.warning("job %s: %s", run.job.id, error)
                return
            except StaleEpoch as error:
                self._active_runs.spawn(self._active_runs.abandon(run, str(error)))
                return

    async def _apply(self, run: JobRun, request: AmendmentRequest) -> None:
        """Change the picture in the engine; a change that cannot be is refused."""
        try:
            await self._prepare_texts(run, request)
            recipe = await self._active_runs.thread.call(lambda engine: engine.amend(run.job.id, request))
        except JobRejected as error:
            run.refusals[request.number] = error.sentence
        else:
            old_rows = run.rows
            run.follow_amendments(recipe)
            self._on_made(run)
            if run.rows != old_rows:
                self._active_runs.presence_changed.set()
        run.last_amendment = request.number
        run.is_amendment_log_stored = False

    async def _answer(self, run: JobRun, number: int) -> None:
        await store_amendment_log(self._bus, run)
        if not await self._bus.renew_claim(run.claim):
            raise StaleEpoch("its claim has lapsed or gone to another worker")
        step = next((amendment.step for amendment in run.amendments if amendment.number == number), None)
        reason = "" if step is not None else run.refusals.get(number, REFUSED_EARLIER)
        await self._result_publisher.publish(
            JobAmended(job=run.job.id, epoch=run.claim.epoch, number=number, step=step, reason=reason[:500])
        )


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
