"""Worker: takes jobs from the queue, runs them in one engine, and holds each until its result is stored.

Every job gets exactly one result or is handed back. The jobs of a killed worker continue elsewhere from their last
snapshots. Imports no SQL and no Discord.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

from msgspec.structs import replace

from engine.bus import Bus, Unreachable
from engine.calibration import Calibration
from engine.cores import Kind
from engine.engine import Developed, Engine, Event, Failed, Stepped
from engine.job import Presence, Snapshot, Warm
from engine.lane import Lane
from engine.logline import about
from engine.memory import give_back_freed
from engine.shelf import Shelf
from engine.shelf.stock import Stock
from engine.upscale import Upscaler
from engine.worker.attention import Attention
from engine.worker.decoding import Decoding
from engine.worker.describing import Describing
from engine.worker.fetching import Fetching
from engine.worker.intake import Intake
from engine.worker.keeping import Keeping
from engine.worker.lease import Lease, Stuck
from engine.worker.outcome import Outcome
from engine.worker.output import Output
from engine.worker.pulse import Pulse
from engine.worker.refining import Refining
from engine.worker.roster import Roster
from engine.worker.run import Run
from engine.worker.steering import Steering
from engine.worker.thread import EngineThread

__all__ = ["Offer", "Stuck", "Worker"]

log = logging.getLogger(__name__)

PAUSE = 0.25
POLL = 0.05
FULL_PAUSE = 0.15  # longest wait of a full worker before it pulls a job that no other takes
IDLE_SECONDS = 1.0  # between two checks for running jobs
PULL_SECONDS = 0.3  # short: a stopping worker waits for its last request
MOST_RUNS = 64


@dataclass(frozen=True)
class Offer:
    """A worker's presence without its current state. `rows`: rows that it runs at once."""

    name: str
    device: str
    rows: int
    models: tuple[Warm, ...] = ()
    pools: tuple[str, ...] = ("default",)
    build: str = ""
    checks: bool = False
    enlarge_ms: float = 0.0

    def presence(self, free: int) -> Presence:
        return Presence(
            worker=self.name, pools=self.pools, models=self.models, device=self.device, rows=self.rows, free=free,
            build=self.build, checks=self.checks, enlarge_ms=self.enlarge_ms,
        )  # fmt: skip


class Worker:
    """`run` returns after `drain`, and raises `Stuck` or `Ended` when the process must end."""

    def __init__(
        self, bus: Bus, engine: Engine, lane: Lane, offer: Offer, pulse: Pulse, upscaler: Upscaler | None = None,
        shelf: Shelf | None = None, found: Mapping[str, Calibration] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._bus, self._offer = bus, offer
        self._thread = EngineThread(engine, pulse, self._on_events, self._on_crash, lane.cores)
        self.roster = Roster(self._thread, lane)
        self._shelf = shelf or Shelf([], Stock(0))
        self._refining = Refining(self._shelf, self.roster, found, self._take_more)
        self._thread.on_ran, lane.on_picture = self._refining.stepped, self._refining.decoded
        self._shelf.loader.busy = lambda: pulse.busy("the loader", "load")
        self._shelf.loader.rest = lambda: pulse.rest("the loader")
        self._fetching = Fetching(bus, self._shelf, self.roster, offer.name, offer.pools)
        self._outcome = Outcome(bus, offer.name, self.roster)
        self._upscaler = upscaler or Upscaler()
        self._output = Output(bus, lane, self._upscaler, self._outcome, pulse)
        self._intake = Intake(
            bus, offer.name, self.roster, self._outcome, self._output, self._admit, self._fetching.elsewhere
        )  # fmt: skip
        self._lease = Lease(bus, self.roster, self._outcome, pulse)
        self._attention = Attention(bus, self.roster)
        self._steering = Steering(bus, self.roster, self._shelf.crowded)
        self._keeping = Keeping(bus, self.roster, self._outcome, self._attention)
        self.describing = Describing(self._thread, lane, self._shelf, offer.rows)
        self._decoding = Decoding(lane, self._shelf)
        self._stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def free_rows(self) -> int:
        return max(0, self._offer.rows - self.roster.rows)

    def drain(self) -> None:
        """Hand back all jobs and stop. Call it on the loop (a signal's callback)."""
        if not self._stop.done():
            self._stop.set_result(None)

    async def run(self) -> None:
        """Work until drained. Raises `Stuck`, and `Ended` from the bus."""
        self._thread.start()
        self._bus.on_return(self._lease.look_again)
        duties: list[Coroutine[object, object, None]] = [
            self._pull(), self._announce(), self._lease.beat(), self._lease.watch(), self._attention.listen(),
            self._steering.listen(), self._keeping.keep(), self._output.show(), self._bus.hold(),
            self._answer(), self._refining.refine(), self._fetching.tell(), self._give_back_memory(),
        ]  # fmt: skip
        tasks = [asyncio.create_task(duty) for duty in duties]
        try:
            done, _ = await asyncio.wait([self._stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.describing.close()
            self._decoding.close()
            await self.roster.close()
            await self._shelf.close()
            self._upscaler.close()
        await self._end()

    async def _end(self) -> None:
        """Shut down in this order, so that jobs we hand back do not come back to us."""
        for goodbye in (self._stop_answering, self._bus.stop_pulling, self._keeping.hand_over, self._depart):
            try:
                await goodbye()
            except Unreachable as error:
                log.warning("%s", error)
        await self._thread.stop()

    async def _stop_answering(self) -> None:
        """Let new requests go to other workers."""
        await self._bus.serve_describe((), self.describing.answer)
        await self._bus.serve_decode((), (), self._decoding.answer)

    async def _depart(self) -> None:
        await self._bus.depart(self._offer.name)

    async def _pull(self) -> None:
        while True:
            room = await self._room()
            try:
                delivered = await self._bus.pull(self._offer.pools, PULL_SECONDS, wait=room)
            except Unreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(PAUSE)
                continue
            if delivered is not None:
                self.roster.spawn(self._intake.take(delivered))

    async def _room(self) -> bool:
        """Wait for free rows and return True. Return False when none are free after a wait.

        The wait grows with this worker's load. A full worker may then take a job that no other wants: the engine shares
        the device.
        """
        end = time.monotonic() + min(FULL_PAUSE, POLL * self.roster.rows / self._offer.rows)
        while len(self.roster) >= MOST_RUNS or (self.free_rows == 0 and time.monotonic() < end):
            await asyncio.sleep(POLL)
        return self.free_rows > 0

    async def _announce(self) -> None:
        while True:
            await self.roster.changed.wait()
            self.roster.changed.clear()
            try:
                await self._bus.announce(self._presence())
            except Unreachable as error:
                log.warning("%s", error)

    async def _answer(self) -> None:
        """Answer requests only for models in memory: no model is loaded for a request."""
        while True:
            try:
                models = self.describing.models
                await self._bus.serve_describe(models, self.describing.answer)
                await self._bus.serve_decode(self._offer.pools, models, self._decoding.answer)
            except Unreachable as error:
                log.warning("%s", error)
            await asyncio.sleep(PAUSE)

    async def _give_back_memory(self) -> None:
        """Return freed memory to the system after loading, and each time the worker becomes idle."""
        while True:
            await asyncio.to_thread(give_back_freed)
            while len(self.roster) == 0:
                await asyncio.sleep(IDLE_SECONDS)
            while len(self.roster) > 0:
                await asyncio.sleep(IDLE_SECONDS)

    def _take_more(self, rows: int) -> None:
        """Raise the announced rows: a model turned out to gain from batches of `rows`."""
        self._offer = dataclasses.replace(self._offer, rows=max(self._offer.rows, rows))

    def _presence(self) -> Presence:
        """Return the presence, with the models that are now in the model cache."""
        said = self._offer.presence(self.free_rows)
        return replace(said, models=self._shelf.warm() or said.models)

    async def _admit(self, run: Run, snapshots: Sequence[Snapshot]) -> None:
        def add(engine: Engine) -> None:
            if not run.ended:  # else a cancel came first, and nothing would remove the job again
                engine.add(run.job, snapshots, beginning)
                engine.watch(run.job.id, run.watched)
                run.steer(engine)

        await self._fetching.fetch(run)
        beginning = await self._output.begin(run)
        run.watched = self._attention.wanted(run.job.id)
        run.stepped = time.monotonic()
        await self._thread.call(add, Kind.PICTURE)  # it encodes prompts

    def _on_events(self, events: list[Event], moment: float) -> None:
        for job, group in groupby(events, key=lambda event: event.job):
            run = self.roster.get(job)
            if run is not None and not run.ended:
                self._on_run(run, list(group), moment)

    def _on_run(self, run: Run, events: list[Event], moment: float) -> None:
        if stepped := [(event.image, event.k) for event in events if isinstance(event, Stepped)]:
            run.step(stepped, moment)
        for event in events:
            match event:
                case Stepped():
                    self._output.stepped(run, event)
                case Developed():
                    self.roster.spawn(self._guarded(run, self._output.developed(run, event)), run)
                case Failed():
                    self.roster.spawn(self._guarded(run, self._failed(run, event)), run)

    async def _failed(self, run: Run, event: Failed) -> None:
        await run.announced.wait()
        await self._outcome.failed(run, event.reason, event.blame)

    async def _guarded(self, run: Run, work: Coroutine[object, object, None]) -> None:
        """Run `work`; an error fails only this job."""
        with about(run.job.id):
            try:
                await work
            except Unreachable as error:
                await self.roster.lose(run, str(error))
            except Exception:
                log.exception("job %s failed in its output", run.job.id)
                if run.ended:
                    await self.roster.lose(run, "its result could not be published")
                else:
                    await self.roster.stop(run)
                    await self._outcome.failed(run, "The picture could not be written.", "us")

    def _on_crash(self, error: BaseException) -> None:
        log.critical("the engine crashed", exc_info=error)
        if not self._stop.done():
            self._stop.set_exception(Stuck(f"The engine crashed: {error!r}"))
