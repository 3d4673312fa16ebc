"""Runs one job to its end in this process, without a broker: `darkroom imagine` uses it if no `darkroom up` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType

from engine.admit import prepare
from engine.cores import Cores, Kind
from engine.engine import Developed as Finished
from engine.engine import Engine, Event, Failed, Stepped
from engine.families.family import Family
from engine.job import Frame, Job, Recipe
from engine.lane import Lane
from engine.map_files import MapFiles
from engine.unfit import Unfit


@dataclass(frozen=True)
class Developed:
    """PNGs and encoded ladders in the order of the images, the number of shown frames, and timings."""

    pictures: list[bytes]
    ladders: list[bytes]
    frames: int
    seconds: float
    ms_per_step: float


PACE = 0.5  # seconds between two frames of an image: one at each step took longer than the step


def develop(
    job: Job, families: Mapping[str, Family], blobs: Mapping[str, bytes] = MappingProxyType({}), *,
    on_frame: Callable[[Frame], None] | None = None, rows: int = 32, maps: MapFiles | None = None,
) -> Developed:  # fmt: skip
    """Run the job to its end; `on_frame` gets live previews in this thread. Raises `Unfit` if it cannot be done.

    `blobs`: the recipe's init images or ladder, by SHA-256. `maps`: where fitted preview maps are stored.
    """
    shared = all(family.device.type == "cpu" for family in families.values())
    engine, lane = Engine(families, rows=rows), Lane(families, maps=maps, cores=Cores(shared))
    try:
        return _Alone(job, families, engine, lane, on_frame).run(blobs)
    finally:
        engine.close()
        lane.close()


class _Alone:
    def __init__(
        self, job: Job, families: Mapping[str, Family], engine: Engine, lane: Lane,
        on_frame: Callable[[Frame], None] | None,
    ) -> None:  # fmt: skip
        self._job, self._families, self._engine, self._lane, self._on_frame = job, families, engine, lane, on_frame
        self._frames: dict[int, Future[Frame]] = {}
        self._pictures: dict[int, Future[bytes]] = {}
        self._ladders: dict[int, Future[bytes]] = {}
        self._due: dict[int, float] = {}  # image → when its next frame is due
        self._shown = 0
        self._started = time.monotonic()
        self._steps = 0
        self._first, self._last = (job.task.first, job.task.last) if isinstance(job.task, Recipe) else (0, 0)

    def run(self, blobs: Mapping[str, bytes]) -> Developed:
        prepare(self._job, self._families)  # before anything is encoded: it may load the model again
        if isinstance(self._job.task, Recipe) and (self._job.ladder or self._on_frame is not None):
            self._lane.prepare(self._job.task.model)
        self._engine.add(self._job, (), self._lane.begin(self._job, blobs).result())
        self._engine.watch(self._job.id, self._on_frame is not None)
        began = time.monotonic()
        while not self._engine.idle:
            if not self._engine.wait_for_work():
                continue
            with self._lane.cores.held(Kind.STEP):
                events = self._engine.step()
            self._steps += 1
            self._show()
            for event in events:
                self._take(event)
        stepping = time.monotonic() - began
        pictures = [self._pictures[image].result() for image in sorted(self._pictures)]
        ladders = [self._ladders[image].result() for image in sorted(self._ladders)]
        seconds = time.monotonic() - self._started
        return Developed(pictures, ladders, self._shown, seconds, 1000 * stepping / max(1, self._steps))

    def _take(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Failed):
            raise Unfit(event.reason, event.blame)
        else:
            self._finish(event)

    def _step(self, event: Stepped) -> None:
        done = time.monotonic() - self._started
        due = event.image not in self._frames and done >= self._due.get(event.image, 0.0)
        if self._on_frame is not None and event.x0 is not None and due:
            self._due[event.image] = done + PACE
            left = done / max(1, event.k - self._first) * (self._last - event.k)
            self._frames[event.image] = self._lane.frame(event, self._job, 0, left)

    def _finish(self, event: Finished) -> None:
        self._pictures[event.image] = self._lane.picture(event, self._job)
        if self._job.ladder:
            self._ladders[event.image] = self._lane.ladder(event, self._job, closely=True)

    def _show(self) -> None:
        for image, future in list(self._frames.items()):
            if self._on_frame is not None and future.done():
                del self._frames[image]
                if future.exception() is None:  # else the decode worker has logged it; the job goes on
                    self._on_frame(future.result())
                    self._shown += 1
