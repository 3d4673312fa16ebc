"""Worker: takes jobs from the queue, runs them in one engine, and answers for each until its result is safe.

Ties the bus, the engine's thread and the output together; knows no SQL, no Discord and no model. Whatever happens, a
job is either answered for by its one result or given back: a killed worker's goes on elsewhere from its last snapshot.
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
FULL_PAUSE = 0.15  # at most, between two looks of a full worker for what no other takes: a newcomer's way in
IDLE_SECONDS = 1.0  # between two looks whether jobs are here, or are gone
PULL_SECONDS = 0.3  # short, since a worker that stops waits for its last request to end
MOST_RUNS = 64


@dataclass(frozen=True)
class Offer:
    """What this worker says of itself; `rows` is how many it takes at once."""

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
        """Hand everything over and end; to be called on the loop (a signal's callback)."""
        if not self._stop.done():
            self._stop.set_result(None)

    async def run(self) -> None:
        """Works until drained. Raises `Stuck`, and `Ended` from the bus."""
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
        """In this order: what is given back must not come straight back to us."""
        for goodbye in (self._stop_answering, self._bus.stop_pulling, self._keeping.hand_over, self._depart):
            try:
                await goodbye()
            except Unreachable as error:
                log.warning("%s", error)
        await self._thread.stop()

    async def _stop_answering(self) -> None:
        """A request that comes from now on goes to another worker."""
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
        """True at once where rows are free, or as soon as some are. False after a pause, which is the longer the
        fuller this worker is: it may take what is left over, for the engine shares the device.
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
        """Describes and decodes with what is in memory: for another model a request would come in vain."""
        while True:
            try:
                models = self.describing.models
                await self._bus.serve_describe(models, self.describing.answer)
                await self._bus.serve_decode(self._offer.pools, models, self._decoding.answer)
            except Unreachable as error:
                log.warning("%s", error)
            await asyncio.sleep(PAUSE)

    async def _give_back_memory(self) -> None:
        """What loading and finished jobs have freed, as soon as there is nothing to do."""
        while True:
            await asyncio.to_thread(give_back_freed)
            while len(self.roster) == 0:
                await asyncio.sleep(IDLE_SECONDS)
            while len(self.roster) > 0:
                await asyncio.sleep(IDLE_SECONDS)

    def _take_more(self, rows: int) -> None:
        """A model turns out to gain by batches as large as that."""
        self._offer = dataclasses.replace(self._offer, rows=max(self._offer.rows, rows))

    def _presence(self) -> Presence:
        """With what is in memory now, where there is a shelf."""
        said = self._offer.presence(self.free_rows)
        return replace(said, models=self._shelf.warm() or said.models)

    async def _admit(self, run: Run, snapshots: Sequence[Snapshot]) -> None:
        def add(engine: Engine) -> None:
            if not run.ended:  # else a cancel came first, and nobody would take the job out again
                engine.add(run.job, snapshots, beginning)
                engine.watch(run.job.id, run.watched)
                run.steer(engine)

        await self._fetching.fetch(run)
        beginning = await self._output.begin(run)
        run.watched = self._attention.wanted(run.job.id)
        run.stepped = time.monotonic()
        await self._thread.call(add, Kind.PICTURE)  # it reads words

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
        """An error about one job is that job's alone."""
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
