"""Intake: from a delivered message to a run. Claims the job, reads tombstone and snapshots, and announces the start.

Workers of a pool may have different models, and any of them may receive a job: a job for another worker goes back
unclaimed. The run is active before the tombstone is read, so that a cancel is either found here or heard by the watch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from engine.bus import BrokerUnreachable, Bus, BusMessage, Claim
from engine.contract import AmendmentLog, Job, JobRejected, JobStarted, Presence, Snapshot, UpscaleTask
from engine.process.log_format import log_context
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import ActiveRuns, JobRun

log = logging.getLogger(__name__)

CLAIM_RETRY_SECONDS = 0.5  # seconds until we try again: the other worker's lease may be expiring
ERROR_RETRY_SECONDS = 1.0
MAX_TRIES = 3
PASS_ON_SECONDS = 0.05  # times the number of deliveries: the next idle worker gets it almost at once
MAX_PASS_ON_SECONDS = 1.0  # for a job that nobody takes: workers that cannot run it must not spin
MAX_REMEMBERED_JOBS = 256  # passed-on jobs: each is logged once
AdmitRun = Callable[[JobRun, Sequence[Snapshot]], Awaitable[None]]
FindRejection = Callable[[Job], str]


class RunsUpscales(Protocol):
    """What runs upscale jobs, which need no engine."""

    async def run_upscale(self, run: JobRun) -> None:
        """Run an upscale job to its result."""
        ...


class Intake:
    """`admit` gives a run to the engine. It raises `JobRejected` where the engine cannot run the job.

    `find_rejection` returns why a job is for another worker; empty: this one may claim it.
    """

    def __init__(
        self,
        bus: Bus,
        worker_name: str,
        active_runs: ActiveRuns,
        result_publisher: ResultPublisher,
        output: RunsUpscales,
        admit: AdmitRun,
        find_rejection: FindRejection,
    ) -> None:
        self._bus = bus
        self._worker_name = worker_name
        self._active_runs = active_runs
        self._result_publisher = result_publisher
        self._output = output
        self._admit = admit
        self._find_rejection = find_rejection
        self._passed_on_jobs: deque[str] = deque(maxlen=MAX_REMEMBERED_JOBS)
        self._error_counts: Counter[str] = Counter()  # unexpected ones, by job

    async def accept(self, delivery: BusMessage[Job]) -> None:
        """Do everything up to the first step. Raises only cancellation."""
        job = delivery.value
        if (known_run := self._active_runs.get(job.id)) is not None:
            known_run.handles[job.attempt] = delivery  # redelivered to us, or requeued while we still run it
            return
        with log_context(job.id):
            if reason := self._find_rejection(job):
                await self._hand_back_unclaimed(delivery, reason)
            elif (claim := await self._claim_job(delivery)) is not None:
                await self._begin_run(self._enter_run(delivery, claim))

    async def _hand_back_unclaimed(self, delivery: BusMessage[Job], reason: str) -> None:
        """Hand the job to another worker of the pool, without a result and without counting an attempt."""
        job_id = delivery.value.id
        if job_id not in self._passed_on_jobs:
            self._passed_on_jobs.append(job_id)
            log.info("job %s is for another worker of the pool: %s", job_id, reason)
        try:
            await delivery.nak(min(MAX_PASS_ON_SECONDS, PASS_ON_SECONDS * delivery.delivery_count))
        except BrokerUnreachable as error:  # unanswered, the message comes back after a lease
            log.warning("job %s: %s", job_id, error)

    async def _claim_job(self, delivery: BusMessage[Job]) -> Claim | None:
        try:
            claim = await self._bus.claim_job(delivery.value.id, self._worker_name)
            if claim is None:
                await delivery.nak(CLAIM_RETRY_SECONDS)
            return claim
        except asyncio.CancelledError:  # the worker stops
            await delivery.nak()
            raise
        except BrokerUnreachable as error:  # unanswered, the message comes back after a lease
            log.warning("job %s: %s", delivery.value.id, error)
            return None

    def _enter_run(self, delivery: BusMessage[Job], claim: Claim) -> JobRun:
        job = delivery.value
        run = JobRun(job, claim, time.monotonic(), handles={job.attempt: delivery})
        if (task := asyncio.current_task()) is not None:
            run.tasks.add(task)
        self._active_runs.add(run)
        return run

    async def _begin_run(self, run: JobRun) -> None:
        try:
            await self._start_run(run)
        except JobRejected as error:
            await self._result_publisher.fail_run(run, error.sentence, error.blame)
        except BrokerUnreachable as error:
            log.warning("job %s is handed back: %s", run.job.id, error)
            await self._hand_back(run)
        except Exception:
            log.exception("job %s could not be started", run.job.id)
            await self._handle_error(run)
        else:
            self._error_counts.pop(run.job.id, None)

    async def _start_run(self, run: JobRun) -> None:
        is_cancelled, snapshots, amendment_log = await asyncio.gather(
            self._bus.is_cancelled(run.job.id),
            self._bus.get_snapshots(run.job.id, run.image_count),
            self._bus.get_amendment_log(run.job.id),
        )
        if is_cancelled:
            if run.try_end():
                await self._result_publisher.publish_cancelled(run, 0)
            return
        if isinstance(run.job.task, UpscaleTask):
            await self._announce_start(run, 0)
            await self._output.run_upscale(run)
            return
        if amendment_log is not None:
            snapshots = await self._take_over(run, amendment_log, snapshots)
        step = run.restore_progress(snapshots)
        log.info("job %s begins at step %d (epoch %d)", run.job.id, step, run.claim.epoch)
        start_steps = asyncio.gather(
            self._announce_start(run, step), self._admit(run, snapshots), return_exceptions=True
        )
        for result in await start_steps:  # Started is published before a failure
            if isinstance(result, BaseException):
                raise result

    async def _take_over(
        self, run: JobRun, amendment_log: AmendmentLog, snapshots: Sequence[Snapshot]
    ) -> Sequence[Snapshot]:
        """Follow what an earlier worker changed, and return the snapshots, those of new images included."""
        image_count = run.image_count
        run.restore_amendments(amendment_log)
        if run.image_count == image_count:
            return snapshots
        return await self._bus.get_snapshots(run.job.id, run.image_count)

    async def _announce_start(self, run: JobRun, step: int) -> None:
        await self._result_publisher.publish(
            JobStarted(job=run.job.id, epoch=run.claim.epoch, worker=self._worker_name, step=step)
        )
        run.start_announced.set()

    async def _handle_error(self, run: JobRun) -> None:
        """Handle an unexpected error: after three tries, dead-letter the message and fail the job.

        Tries are counted here. The broker's count includes deliveries that were handed back or passed on.
        """
        await self._active_runs.stop_run(run)
        self._error_counts[run.job.id] += 1
        if self._error_counts[run.job.id] < MAX_TRIES:
            await self._hand_back(run, ERROR_RETRY_SECONDS)
            return
        del self._error_counts[run.job.id]
        try:
            await run.handles.pop(max(run.handles)).dead_letter("rejected after three errors")
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)
        await self._result_publisher.fail_run(run, "The engine failed at this job three times.", "us")

    async def _hand_back(self, run: JobRun, delay: float = 0.0) -> None:
        run.try_end()
        await self._active_runs.stop_run(run)  # the engine may have it already
        try:
            await self._result_publisher.release_run(run, delay)
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)


RETRY_SECONDS = 0.25
POLL_SECONDS = 0.05
FULL_WAIT_SECONDS = 0.15  # longest wait of a full worker before it pulls a job that no other takes
PULL_SECONDS = 0.3  # short: a stopping worker waits for its last request
MAX_RUNS = 64


class JobPuller:
    """`get_rows` returns the rows that the worker `name` runs at once, `make_presence` what to announce now.

    Without a presence it is not there for jobs. It takes no further job while it has `get_max_runs()`, which may be 0.
    """

    def __init__(
        self,
        bus: Bus,
        active_runs: ActiveRuns,
        intake: Intake,
        pools: Sequence[str],
        get_rows: Callable[[], int],
        make_presence: Callable[[], Presence | None],
        name: str,
        get_max_runs: Callable[[], int] = lambda: MAX_RUNS,
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._intake = intake
        self._pools = pools
        self._get_rows = get_rows
        self._make_presence = make_presence
        self._name = name
        self._get_max_runs = get_max_runs
        self._accepted_jobs: list[str] = []  # jobs on their way to a run

    @property
    def free_rows(self) -> int:
        return 0 if self._is_full else max(0, self._get_rows() - self._active_runs.rows)

    @property
    def _is_full(self) -> bool:
        """Whether it has as many runs as it may have, those included that are being claimed."""
        new_jobs = sum(self._active_runs.get(job) is None for job in self._accepted_jobs)
        return len(self._active_runs) + new_jobs >= self._get_max_runs()

    async def pull_regularly(self) -> None:
        """Pull jobs, for ever."""
        while True:
            has_free_rows = await self._wait_for_rows()
            try:
                delivery = await self._bus.pull_job(self._pools, PULL_SECONDS, wait=has_free_rows)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if delivery is not None:
                self._accepted_jobs.append(delivery.value.id)  # at once: the task begins only after the next look
                self._active_runs.spawn(self._accept(delivery))

    async def _accept(self, delivery: BusMessage[Job]) -> None:
        try:
            await self._intake.accept(delivery)
        finally:
            self._accepted_jobs.remove(delivery.value.id)

    async def announce_regularly(self) -> None:
        """Announce the worker each time its presence is out of date, for ever."""
        while True:
            await self._active_runs.presence_changed.wait()
            self._active_runs.presence_changed.clear()
            try:
                presence = self._make_presence()
                if presence is None:
                    await self._bus.remove_presence(self._name)
                else:
                    await self._bus.announce(presence)
            except BrokerUnreachable as error:
                log.warning("%s", error)

    async def _wait_for_rows(self) -> bool:
        """Wait for free rows and return True. Return False when none are free after a wait.

        The wait grows with this worker's load. A full worker may then take a job that no other wants: the engine shares
        the device.
        """
        end = time.monotonic() + min(FULL_WAIT_SECONDS, POLL_SECONDS * self._active_runs.rows / self._get_rows())
        while self._is_full or (self.free_rows == 0 and time.monotonic() < end):
            await asyncio.sleep(POLL_SECONDS)
        return self.free_rows > 0
