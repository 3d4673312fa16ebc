"""Intake: from a delivered message to a run. Claims the job, reads tombstone and snapshots, and announces the start.

Workers of a pool may have different models, and any of them may receive a job: a job for another worker goes back
unclaimed. The run enters the roster before the tombstone is read, so that a cancel is either found here or heard by the
watch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

from engine.bus import Bus, Claim, Delivered, Unreachable
from engine.job import Enlarge, Job, Snapshot, Started
from engine.logline import about
from engine.unfit import Unfit
from engine.worker.outcome import Outcome
from engine.worker.output import Output
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

CLAIMED_ELSEWHERE = 0.5  # seconds until we try again: the other worker's lease may be expiring
ODD_PAUSE = 1.0
TRIES = 3
PASS_ON_SECONDS = 0.05  # times the number of deliveries: the next idle worker gets it almost at once
LONGEST_PASS_ON = 1.0  # for a job that nobody takes: workers that cannot run it must not spin
REMEMBERED = 256  # passed-on jobs: each is logged once
Admit = Callable[[Run, Sequence[Snapshot]], Awaitable[None]]
Elsewhere = Callable[[Job], str]


class Intake:
    """`admit` gives a run to the engine. It raises `Unfit` where the engine cannot run the job.

    `elsewhere` returns why a job is for another worker; empty: it may be claimed.
    """

    def __init__(
        self, bus: Bus, worker: str, roster: Roster, outcome: Outcome, output: Output, admit: Admit,
        elsewhere: Elsewhere,
    ) -> None:  # fmt: skip
        self._bus, self._worker, self._roster = bus, worker, roster
        self._outcome, self._output, self._admit, self._elsewhere = outcome, output, admit, elsewhere
        self._passed: deque[str] = deque(maxlen=REMEMBERED)
        self._errors: Counter[str] = Counter()  # unexpected ones, by job

    async def take(self, delivered: Delivered[Job]) -> None:
        """Do everything up to the first step. Raises only cancellation."""
        job = delivered.value
        if (mine := self._roster.get(job.id)) is not None:
            mine.handles[job.attempt] = delivered  # redelivered to us, or requeued while we still run it
            return
        with about(job.id):
            if why := self._elsewhere(job):
                await self._pass_on(delivered, why)
            elif (claim := await self._claimed(delivered)) is not None:
                await self._begin(self._entered(delivered, claim))

    async def _pass_on(self, delivered: Delivered[Job], why: str) -> None:
        """Hand the job to another worker of the pool, without a result and without counting an attempt."""
        job = delivered.value.id
        if job not in self._passed:
            self._passed.append(job)
            log.info("job %s is for another worker of the pool: %s", job, why)
        try:
            await delivered.nak(min(LONGEST_PASS_ON, PASS_ON_SECONDS * delivered.tries))
        except Unreachable as error:  # unanswered, the message comes back after a lease
            log.warning("job %s: %s", job, error)

    async def _claimed(self, delivered: Delivered[Job]) -> Claim | None:
        try:
            claim = await self._bus.claim(delivered.value.id, self._worker)
            if claim is None:
                await delivered.nak(CLAIMED_ELSEWHERE)
            return claim
        except asyncio.CancelledError:  # the worker stops
            await delivered.nak()
            raise
        except Unreachable as error:  # unanswered, the message comes back after a lease
            log.warning("job %s: %s", delivered.value.id, error)
            return None

    def _entered(self, delivered: Delivered[Job], claim: Claim) -> Run:
        job = delivered.value
        run = Run(job, claim, time.monotonic(), handles={job.attempt: delivered})
        if (task := asyncio.current_task()) is not None:
            run.tasks.add(task)
        self._roster.enter(run)
        return run

    async def _begin(self, run: Run) -> None:
        try:
            await self._start(run)
        except Unfit as error:
            await self._outcome.failed(run, error.sentence, error.blame)
        except Unreachable as error:
            log.warning("job %s is handed back: %s", run.job.id, error)
            await self._back(run)
        except Exception:
            log.exception("job %s could not be started", run.job.id)
            await self._odd(run)
        else:
            self._errors.pop(run.job.id, None)

    async def _start(self, run: Run) -> None:
        cancelled, snapshots = await asyncio.gather(
            self._bus.is_cancelled(run.job.id), self._bus.get_snapshots(run.job.id)
        )
        if cancelled:
            if run.end():
                await self._outcome.cancelled(run, 0)
            return
        if isinstance(run.job.task, Enlarge):
            await self._announce(run, 0)
            await self._output.enlarge(run)
            return
        step = run.resume(snapshots)
        log.info("job %s begins at step %d (epoch %d)", run.job.id, step, run.claim.epoch)
        both = asyncio.gather(self._announce(run, step), self._admit(run, snapshots), return_exceptions=True)
        for outcome in await both:  # Started is published before a failure
            if isinstance(outcome, BaseException):
                raise outcome

    async def _announce(self, run: Run, step: int) -> None:
        await self._outcome.say(Started(job=run.job.id, epoch=run.claim.epoch, worker=self._worker, step=step))
        run.announced.set()

    async def _odd(self, run: Run) -> None:
        """Handle an unexpected error: after three tries, dead-letter the message and fail the job.

        Tries are counted here. The broker's count includes deliveries that were handed back or passed on.
        """
        await self._roster.stop(run)
        self._errors[run.job.id] += 1
        if self._errors[run.job.id] < TRIES:
            await self._back(run, ODD_PAUSE)
            return
        del self._errors[run.job.id]
        try:
            await run.handles.pop(max(run.handles)).lay_aside("three tries, three errors")
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)
        await self._outcome.failed(run, "The engine failed at this job three times.", "us")

    async def _back(self, run: Run, delay: float = 0.0) -> None:
        run.end()
        await self._roster.stop(run)  # the engine may have it already
        try:
            await self._outcome.give_back(run, delay)
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)
