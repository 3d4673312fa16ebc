"""How a run ends: its one result is published under its epoch, and only then is the job released.

While the claim holds, it waits for the end of an outage. A lost claim ends a run without a result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

from engine.bus import BrokerUnreachable, Bus
from engine.contract import (
    Blame,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobHandedBack,
    PictureReady,
    Result,
    UpscaleMethod,
    Verdict,
)
from engine.process.log_format import log_context
from engine.worker.run import ActiveRuns, JobRun

log = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_SECONDS = 0.3
MAX_OUTAGE_SECONDS = 300.0
MAX_SOURCE_BYTES = 64 * 1024 * 1024  # of a picture that a job names


async def retry_until_reachable(action: Callable[[], Awaitable[T]], max_seconds: float = MAX_OUTAGE_SECONDS) -> T:
    """Call `action` again while the broker is away. Raises `BrokerUnreachable` after `max_seconds`."""
    deadline = time.monotonic() + max_seconds
    while True:
        try:
            return await action()
        except BrokerUnreachable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s Trying again.", error)
            await asyncio.sleep(RETRY_SECONDS)


async def fetch_blob(bus: Bus, sha: str) -> bytes:
    """Return a picture that a job names, also after an outage of the broker. Raises `BlobMissing`."""
    return await retry_until_reachable(lambda: bus.get_blob(sha, MAX_SOURCE_BYTES))


class ResultPublisher:
    """Ends runs: it removes a run from the active runs after its result is stored."""

    def __init__(self, bus: Bus, worker_name: str, active_runs: ActiveRuns) -> None:
        self._bus = bus
        self._worker_name = worker_name
        self._active_runs = active_runs

    async def publish(self, result: Result) -> None:
        with log_context(result.job):
            await retry_until_reachable(lambda: self._bus.publish_result(self._worker_name, result))

    async def publish_picture(self, run: JobRun, picture: PictureReady) -> None:
        """Announce a finished picture, whose blob is already stored."""
        await run.start_announced.wait()
        await self.publish(picture)

    async def publish_content(
        self,
        run: JobRun,
        image: int,
        kind: Literal["image", "ladder"],
        content: bytes,
        size: tuple[int, int],
        verdict: Verdict = "unchecked",
        method: UpscaleMethod | None = None,
    ) -> None:
        """Store a finished picture or ladder as a blob, and announce it. `size`: width and height in pixels."""
        sha = await retry_until_reachable(lambda: self._bus.put_blob(content))
        picture = PictureReady(
            job=run.job.id,
            image=image,
            epoch=run.claim.epoch,
            kind=kind,
            sha256=sha,
            bytes=len(content),
            width=size[0],
            height=size[1],
            verdict=verdict,
            method=method,
        )
        await self.publish_picture(run, picture)

    async def finish_run(self, run: JobRun, chosen_candidates: tuple[int, ...] = ()) -> None:
        if run.try_end():
            seconds = time.monotonic() - run.start_time
            evaluations = max(1, round(run.image_evaluations / run.image_count))
            result = JobFinished(
                job=run.job.id,
                epoch=run.claim.epoch,
                cost=run.job.cost,
                seconds=seconds,
                ms_per_step=1000 * seconds / evaluations,
                chosen_candidates=chosen_candidates,
                amendments=run.amendments,
            )
            await self._end_run(run, result)

    async def fail_run(self, run: JobRun, reason: str, blame: Blame) -> None:
        """Fail the run. `retry` is set where another worker may be able to run the job."""
        if run.try_end():
            log.warning("job %s failed (%s): %s", run.job.id, blame, reason)
            retry = blame == "worker"
            result = JobFailed(job=run.job.id, epoch=run.claim.epoch, reason=reason[:500], blame=blame, retry=retry)
            await self._end_run(run, result)

    async def publish_cancelled(self, run: JobRun, steps: int) -> None:
        """Publish that a run was cancelled at step `steps`. Only the caller that ended the run calls it."""
        cost = run.compute_cost(steps)
        steps_run = max(0, steps - run.first_step)
        await self._end_run(run, JobCancelled(job=run.job.id, epoch=run.claim.epoch, steps=steps_run, cost=cost))

    async def _end_run(self, run: JobRun, result: Result) -> None:
        await self.publish(result)
        log.info("job %s: %s", run.job.id, str(result.__struct_config__.tag).lower())
        self._active_runs.remove(run)
        with log_context(run.job.id):
            if await self._has_claim(run):
                await self._clean_up(run, result)

    async def _has_claim(self, run: JobRun) -> bool:
        """Whether the claim holds. If not, or if that is unknown, message and snapshots may be the next worker's.

        The bot cleans up after a finished job too, so it removes what we leave behind.
        """
        try:
            if await retry_until_reachable(lambda: self._bus.renew_claim(run.claim), self._bus.limits.lease):
                return True
            log.warning("job %s: its claim has expired, so its next worker cleans up", run.job.id)
        except BrokerUnreachable as error:
            log.warning("job %s: %s", run.job.id, error)
        return False

    async def _clean_up(self, run: JobRun, result: Result) -> None:
        """Acknowledge the message, drop the snapshots, and last release the claim: another worker may then take it."""
        actions: list[Callable[[], Awaitable[None]]] = [handle.ack for handle in run.handles.values()]
        if not (isinstance(result, JobFailed) and result.retry):  # else the next worker may resume from them
            actions.append(lambda: self._bus.drop_snapshots(run.job.id))
        actions.append(lambda: self._bus.release_claim(run.claim))
        for action in actions:
            try:
                await action()
            except BrokerUnreachable as error:  # the bot settles the job too, and the claim expires
                log.warning("job %s: %s", run.job.id, error)

    async def hand_back(self, run: JobRun) -> None:
        """Publish that this worker stops and hands the job back, then release it."""
        try:
            await self._bus.publish_result(self._worker_name, JobHandedBack(job=run.job.id, epoch=run.claim.epoch))
        except BrokerUnreachable as error:  # then it counts as lost, which a job may be a few times
            log.warning("job %s: %s", run.job.id, error)
        await self.release_run(run)

    async def release_run(self, run: JobRun, delay: float = 0.0) -> None:
        """Release a run without a result, so that another worker can resume it."""
        self._active_runs.remove(run)
        await self._bus.release_claim(run.claim)
        for handle in run.handles.values():
            await handle.nak(delay)
