"""A device in simulated time, driven by our scheduler, and for comparison by one job after another.

Both get the same arrivals and the same table of milliseconds by rows, in the form of a calibration. Decoding runs in
its own thread and is left out of both. Needs simpy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.bench.arrivals import Arrival
from engine.job import Share
from engine.scheduler import Scheduler

LIMIT = 8  # rows a forward
# Invented milliseconds of a forward by rows, in proportions that a GPU has: small pictures gain by batching.
FORWARD_MS = {
    512: {1: 60.0, 2: 100.0, 4: 170.0, 8: 310.0},
    768: {1: 130.0, 2: 240.0, 4: 460.0, 8: 900.0},
    1024: {1: 260.0, 2: 500.0, 4: 980.0, 8: 1940.0},
}


def forward_ms(size: int, rows: int) -> float:
    """Return the time of these rows: padded to the next bucket; beyond the largest bucket in several forwards."""
    table, largest = FORWARD_MS[size], max(FORWARD_MS[size])
    whole, rest = divmod(rows, largest)
    return whole * table[largest] + (table[min(bucket for bucket in table if bucket >= rest)] if rest else 0.0)


def alone(job: Arrival) -> float:
    """Return the seconds that the job takes with the device to itself."""
    return sum(forward_ms(job.size, job.images * job.rows(k)) for k in range(job.steps)) / 1000.0


@dataclass
class Seen:
    """A simulation's result. By job: seconds from arrival to its first preview, and to its end if it finished.

    `cost` sums each user's cost times rows until `until`, in milliseconds; `filled` counts forwards by rows.
    """

    until: float = math.inf
    preview: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    cost: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    filled: Counter[int] = field(default_factory=Counter)


class Picture:
    """One image of an arrival, in the form that the scheduler takes."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival, self.job, self.k = arrival, arrival.job, 0
        self.share = Share("standard", arrival.guild, arrival.user)
        self.key = arrival.size
        self.price = FORWARD_MS[arrival.size][LIMIT] / LIMIT
        self.times = FORWARD_MS[arrival.size]

    @property
    def rows(self) -> int:
        return self.arrival.rows(self.k)


class Together:
    """Runs our scheduler on a simulated device."""

    def __init__(self, arrivals: Sequence[Arrival], until: float = math.inf) -> None:
        import simpy

        self.seen = Seen(until)
        self._world: Any = simpy.Environment()
        self._wake: Any = self._world.event()
        self._scheduler: Scheduler[Picture] = Scheduler()
        self._pictures: dict[str, list[Picture]] = {}
        self._world.process(self._arrive(arrivals))
        self._world.process(self._run())

    def run(self) -> Seen:
        self._world.run(None if math.isinf(self.seen.until) else self.seen.until)
        return self.seen

    def _arrive(self, arrivals: Sequence[Arrival]) -> Generator[Any, None, None]:
        for arrival in arrivals:
            yield self._world.timeout(arrival.at - self._world.now)
            self._pictures[arrival.job] = [Picture(arrival) for _ in range(arrival.images)]
            for picture in self._pictures[arrival.job]:
                self._scheduler.add(picture)
            if math.isfinite(arrival.patience):
                self._world.process(self._cancel(arrival))
            if not self._wake.triggered:
                self._wake.succeed()

    def _cancel(self, arrival: Arrival) -> Generator[Any, None, None]:
        yield self._world.timeout(arrival.patience)
        for picture in self._pictures.pop(arrival.job, []):
            self._scheduler.remove(picture)

    def _run(self) -> Generator[Any, None, None]:
        while True:
            batch = self._scheduler.next(LIMIT)
            if not batch:
                self._wake = self._world.event()
                yield self._wake
                continue
            rows = sum(picture.rows for picture in batch)
            took = forward_ms(batch[0].key, rows)
            self.seen.filled[rows] += 1
            for picture in batch:
                self.seen.cost[picture.share.user] += picture.rows * picture.price
            yield self._world.timeout(took / 1000.0)
            self._advance(batch, took)

    def _advance(self, batch: Sequence[Picture], took: float) -> None:
        for picture in batch:
            picture.k += 1
        self._scheduler.charge(batch, took)
        for picture in batch:
            rest = self._pictures.get(picture.job)
            if rest is None:
                continue  # cancelled while it ran
            waited = self._world.now - picture.arrival.at
            self.seen.preview.setdefault(picture.job, waited)
            if picture.k == picture.arrival.steps:
                self._scheduler.remove(picture)
                rest.remove(picture)
            if not rest:
                del self._pictures[picture.job]
                self.seen.finished[picture.job] = waited


class InTurn:
    """Runs one job after another, first come first served; all images of a job share its forwards."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        import simpy

        self.seen = Seen()
        self._world: Any = simpy.Environment()
        self._store: Any = simpy.Store(self._world)
        self._world.process(self._arrive(arrivals))
        self._world.process(self._run())

    def run(self) -> Seen:
        self._world.run()
        return self.seen

    def _arrive(self, arrivals: Sequence[Arrival]) -> Generator[Any, None, None]:
        for arrival in arrivals:
            yield self._world.timeout(arrival.at - self._world.now)
            self._store.put(arrival)

    def _run(self) -> Generator[Any, Arrival, None]:
        while True:
            job = yield self._store.get()
            for k in range(job.steps):
                if self._world.now - job.at >= job.patience:
                    break
                rows = job.images * job.rows(k)
                self.seen.filled[min(rows, LIMIT)] += 1
                yield self._world.timeout(forward_ms(job.size, rows) / 1000.0)
                self.seen.preview.setdefault(job.job, self._world.now - job.at)
            else:
                self.seen.finished[job.job] = self._world.now - job.at
