"""A device in simulated time, driven by our scheduler, and for comparison by one job after another.

Both get the same arrivals and the same table of milliseconds by rows, in the form of a calibration. Both leave out
decoding, which runs in its own thread. Needs simpy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulation.arrivals import Arrival
from engine.batching.scheduler import Scheduler
from engine.contract import BillingKey

BATCH_LIMIT = 8  # rows a forward
# Invented milliseconds of a forward by rows, in proportions that a GPU has: small pictures gain by batching.
FORWARD_MS = {
    512: {1: 60.0, 2: 100.0, 4: 170.0, 8: 310.0},
    768: {1: 130.0, 2: 240.0, 4: 460.0, 8: 900.0},
    1024: {1: 260.0, 2: 500.0, 4: 980.0, 8: 1940.0},
}


def compute_forward_ms(size: int, rows: int) -> float:
    """Return the time of these rows: padded to the next bucket; beyond the largest bucket in several forwards."""
    ms_by_rows = FORWARD_MS[size]
    largest_bucket = max(FORWARD_MS[size])
    full_forwards, remaining_rows = divmod(rows, largest_bucket)
    return full_forwards * ms_by_rows[largest_bucket] + (
        ms_by_rows[min(bucket for bucket in ms_by_rows if bucket >= remaining_rows)] if remaining_rows else 0.0
    )


def compute_isolated_seconds(arrival: Arrival) -> float:
    """Return the seconds that the job takes with the device to itself."""
    return (
        sum(compute_forward_ms(arrival.size, arrival.images * arrival.rows_at_step(k)) for k in range(arrival.steps))
        / 1000.0
    )


@dataclass
class SimulationResult:
    """A simulation's result. By job: seconds from arrival to its first preview, and to its end if it finished.

    `cost_by_member` sums each member's cost times rows until `end_time`, in milliseconds; `forwards_by_rows` counts
    forwards by their rows.
    """

    end_time: float = math.inf
    preview_seconds: dict[str, float] = field(default_factory=dict)
    finish_seconds: dict[str, float] = field(default_factory=dict)
    cost_by_member: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    forwards_by_rows: Counter[int] = field(default_factory=Counter)


class SimulatedImage:
    """One image of an arrival, in the form that the scheduler takes."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.job = arrival.job_id
        self.k = 0
        self.billing_key = BillingKey("standard", arrival.guild, arrival.member)
        self.key = arrival.size
        self.row_ms = FORWARD_MS[arrival.size][BATCH_LIMIT] / BATCH_LIMIT
        self.forward_times = FORWARD_MS[arrival.size]

    @property
    def rows(self) -> int:
        return self.arrival.rows_at_step(self.k)


class BatchedSimulation:
    """Runs our scheduler on a simulated device."""

    def __init__(self, arrivals: Sequence[Arrival], end_time: float = math.inf) -> None:
        import simpy

        self.result = SimulationResult(end_time)
        self._environment: Any = simpy.Environment()
        self._wake_event: Any = self._environment.event()
        self._scheduler: Scheduler[SimulatedImage] = Scheduler()
        self._images_by_job: dict[str, list[SimulatedImage]] = {}
        self._environment.process(self._add_arrivals(arrivals))
        self._environment.process(self._run_batches())

    def run(self) -> SimulationResult:
        self._environment.run(None if math.isinf(self.result.end_time) else self.result.end_time)
        return self.result

    def _add_arrivals(self, arrivals: Sequence[Arrival]) -> Generator[Any, None, None]:
        for arrival in arrivals:
            yield self._environment.timeout(arrival.arrival_time - self._environment.now)
            self._images_by_job[arrival.job_id] = [SimulatedImage(arrival) for _ in range(arrival.images)]
            for image in self._images_by_job[arrival.job_id]:
                self._scheduler.add(image)
            if math.isfinite(arrival.cancel_after):
                self._environment.process(self._cancel_later(arrival))
            if not self._wake_event.triggered:
                self._wake_event.succeed()

    def _cancel_later(self, arrival: Arrival) -> Generator[Any, None, None]:
        yield self._environment.timeout(arrival.cancel_after)
        for image in self._images_by_job.pop(arrival.job_id, []):
            self._scheduler.remove(image)

    def _run_batches(self) -> Generator[Any, None, None]:
        while True:
            batch = self._scheduler.next_batch(BATCH_LIMIT)
            if not batch:
                self._wake_event = self._environment.event()
                yield self._wake_event
                continue
            rows = sum(image.rows for image in batch)
            step_ms = compute_forward_ms(batch[0].key, rows)
            self.result.forwards_by_rows[rows] += 1
            for image in batch:
                self.result.cost_by_member[image.billing_key.user] += image.rows * image.row_ms
            yield self._environment.timeout(step_ms / 1000.0)
            self._finish_step(batch, step_ms)

    def _finish_step(self, batch: Sequence[SimulatedImage], step_ms: float) -> None:
        for image in batch:
            image.k += 1
        self._scheduler.charge(batch, step_ms)
        for image in batch:
            unfinished_images = self._images_by_job.get(image.job)
            if unfinished_images is None:
                continue  # cancelled while it ran
            waited_seconds = self._environment.now - image.arrival.arrival_time
            self.result.preview_seconds.setdefault(image.job, waited_seconds)
            if image.k == image.arrival.steps:
                self._scheduler.remove(image)
                unfinished_images.remove(image)
            if not unfinished_images:
                del self._images_by_job[image.job]
                self.result.finish_seconds[image.job] = waited_seconds


class SequentialSimulation:
    """Runs one job after another, first come first served; all images of a job share its forwards."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        import simpy

        self.result = SimulationResult()
        self._environment: Any = simpy.Environment()
        self._arrival_queue: Any = simpy.Store(self._environment)
        self._environment.process(self._add_arrivals(arrivals))
        self._environment.process(self._run_jobs())

    def run(self) -> SimulationResult:
        self._environment.run()
        return self.result

    def _add_arrivals(self, arrivals: Sequence[Arrival]) -> Generator[Any, None, None]:
        for arrival in arrivals:
            yield self._environment.timeout(arrival.arrival_time - self._environment.now)
            self._arrival_queue.put(arrival)

    def _run_jobs(self) -> Generator[Any, Arrival, None]:
        while True:
            arrival = yield self._arrival_queue.get()
            for step in range(arrival.steps):
                if self._environment.now - arrival.arrival_time >= arrival.cancel_after:
                    break
                rows = arrival.images * arrival.rows_at_step(step)
                self.result.forwards_by_rows[min(rows, BATCH_LIMIT)] += 1
                yield self._environment.timeout(compute_forward_ms(arrival.size, rows) / 1000.0)
                self.result.preview_seconds.setdefault(arrival.job_id, self._environment.now - arrival.arrival_time)
            else:
                self.result.finish_seconds[arrival.job_id] = self._environment.now - arrival.arrival_time
