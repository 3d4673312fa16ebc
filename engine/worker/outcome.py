"""How a run ends: its one result is published under its epoch, and only then is the job released.

Outages are waited out while the claim holds. A lost claim ends a run without a result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from engine.bus import Bus, Unreachable
from engine.job import Blame, Cancelled, Failed, Finished, Picture, Result, Returned
from engine.logline import about
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

T = TypeVar("T")
PAUSE = 0.3
PATIENCE = 300.0


async def insist(act: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> T:
    """Call `act` again while the broker is away. Raises `Unreachable` after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            return await act()
        except Unreachable as error:
            if time.monotonic() > end:
                raise
            log.warning("%s Trying again.", error)
            await asyncio.sleep(PAUSE)


class Outcome:
    """Ends runs: a run leaves the roster here, after its result is stored."""

    def __init__(self, bus: Bus, worker: str, roster: Roster) -> None:
        self._bus, self._worker, self._roster = bus, worker, roster

    async def say(self, result: Result) -> None:
        with about(result.job):
            await insist(lambda: self._bus.publish_result(self._worker, result))

    async def picture(self, run: Run, picture: Picture) -> None:
        """Announce a finished picture, whose blob is already stored."""
        await run.announced.wait()
        await self.say(picture)

    async def finished(self, run: Run) -> None:
        if run.end():
            seconds = time.monotonic() - run.began
            steps = max(1, round(run.run_here / run.count))
            result = Finished(
                job=run.job.id, epoch=run.claim.epoch, cost=run.job.cost, seconds=seconds,
                ms_per_step=1000 * seconds / steps,
            )  # fmt: skip
            await self._conclude(run, result)

    async def failed(self, run: Run, reason: str, blame: Blame) -> None:
        """Fail the run. `retry` is set where another worker may be able to run the job."""
        if run.end():
            log.warning("job %s failed (%s): %s", run.job.id, blame, reason)
            retry = blame == "worker"
            failed = Failed(job=run.job.id, epoch=run.claim.epoch, reason=reason[:500], blame=blame, retry=retry)
            await self._conclude(run, failed)

    async def cancelled(self, run: Run, steps: int) -> None:
        """Publish that a run was cancelled at step `steps`. Only the caller that ended the run calls it."""
        cost, ran = run.spent(steps), max(0, steps - run.first)
        await self._conclude(run, Cancelled(job=run.job.id, epoch=run.claim.epoch, steps=ran, cost=cost))

    async def _conclude(self, run: Run, result: Result) -> None:
        await self.say(result)
        log.info("job %s: %s", run.job.id, type(result).__name__.lower())
        self._roster.leave(run)
        with about(run.job.id):
            if await self._still_ours(run):
                await self._let_go(run, result)

    async def _still_ours(self, run: Run) -> bool:
        """Whether the claim holds. If not, or if that is unknown, message and snapshots may be the next worker's.

        The bot settles a finished job too, so what we leave behind is removed.
        """
        try:
            if await insist(lambda: self._bus.renew(run.claim), self._bus.kept.lease):
                return True
            log.warning("job %s: its claim has expired, so its next worker cleans up", run.job.id)
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)
        return False

    async def _let_go(self, run: Run, result: Result) -> None:
        """Acknowledge the message, drop the snapshots, and last release the claim: another worker may then take it."""
        goodbyes: list[Callable[[], Awaitable[None]]] = [handle.ack for handle in run.handles.values()]
        if not (isinstance(result, Failed) and result.retry):  # else the next worker may resume from them
            goodbyes.append(lambda: self._bus.drop_snapshots(run.job.id))
        goodbyes.append(lambda: self._bus.release(run.claim))
        for goodbye in goodbyes:
            try:
                await goodbye()
            except Unreachable as error:  # the bot settles the job too, and the claim expires
                log.warning("job %s: %s", run.job.id, error)

    async def return_(self, run: Run) -> None:
        """Publish that this worker stops and hands the job back, then release it."""
        try:
            await self._bus.publish_result(self._worker, Returned(job=run.job.id, epoch=run.claim.epoch))
        except Unreachable as error:  # then it counts as lost, which a job may be a few times
            log.warning("job %s: %s", run.job.id, error)
        await self.give_back(run)

    async def give_back(self, run: Run, delay: float = 0.0) -> None:
        """Release a run without a result, so that another worker can resume it."""
        self._roster.leave(run)
        await self._bus.release(run.claim)
        for handle in run.handles.values():
            await handle.nak(delay)
