"""Changes of running pictures: applies what the bot asks for, and answers once no lost worker could undo it.

An answer follows three things: the engine holds the change, the broker stores it beside the snapshots, and our claim
still holds. So the next worker of the job, which reads them after it has claimed the job, goes on with every change
that was answered. A repeated request is answered again, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from engine.bus import BrokerUnreachable, Bus, StaleEpoch
from engine.contract import AmendJob, AmendmentRequest, JobAmended
from engine.contract.rejection import JobRejected
from engine.worker.active_runs import ActiveRuns
from engine.worker.result_publisher import ResultPublisher
from engine.worker.run import JobRun

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
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
        while True:
            try:
                async for message in self._bus.watch_amendments(self._pools):
                    run = self._active_runs.get(message.job)
                    if run is not None and run.claim.epoch == message.epoch and run.start_announced.is_set():
                        run.newest_changes = message
                        if not run.amendment_lock.locked():  # else whoever holds it reads the message, too
                            self._active_runs.spawn(self._amend(run), run)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)

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
