"""A simulated day of a busy server: our scheduler beside one job after another, on the same arrivals.

Arrivals are drawn from a seed. The device is a table of milliseconds by rows, in the form of a calibration. Both orders
leave out decoding, which runs in its own thread. The figures compare scheduling orders, not speed, and the same seed
gives the same figures on every machine. Needs simpy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from random import Random
from typing import Any

from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import jain_index, percentile
from engine.batching.scheduler import Scheduler
from engine.contract import BillingKey

SEED = 7
BACKLOGGED_USERS = 8  # users of equal demand for Jain's index
HOUR_SECONDS = 3600.0


def simulate_day_rows(seed: int = SEED) -> list[FigureRow]:
    """Return the simulation's rows; without simpy, one row that says so."""
    if find_spec("simpy") is None:
        missing_note = "simpy is missing: pip install 'darkroom-bot[bench]'"
        return [FigureRow("a simulated day", None, None, "", missing_note)]
    return [*compare_orders(generate_day(seed)), *measure_fairness()]


def compare_orders(arrivals: Sequence[Arrival]) -> list[FigureRow]:
    """Run both orders on the same arrivals and return their rows."""
    batched = BatchedSimulation(arrivals).run()
    sequential = SequentialSimulation(arrivals).run()
    finished_in_both = sorted(batched.finish_seconds.keys() & sequential.finish_seconds.keys())
    isolated_seconds = {arrival.job_id: compute_isolated_seconds(arrival) for arrival in arrivals}
    note = f"of {len(arrivals)}; the others cancelled"
    count = len(finished_in_both)
    rows = [FigureRow("simulated day: jobs that finished", count, None, "", note, count)]
    for name, result in (("ours", batched), ("one after another", sequential)):
        slowdowns = [result.finish_seconds[job_id] / isolated_seconds[job_id] for job_id in finished_in_both]
        preview_seconds = [result.preview_seconds[job_id] for job_id in finished_in_both]
        for percent in (50, 95):
            for quantity, values, unit in (
                ("first preview", preview_seconds, "s"),
                ("time in the system / time alone", slowdowns, "×"),
            ):
                figure = percentile(values, percent / 100)
                rows.append(FigureRow(f"{quantity} p{percent}, {name}", figure, None, unit, samples=len(values)))
        name = f"rows filled while busy, {name}"
        rows.append(FigureRow(name, fill_percent(result), None, "%", f"of {BATCH_LIMIT} a forward"))
    return rows


def measure_fairness() -> list[FigureRow]:
    """Return the rows that show how much one user can slow another."""
    return [
        FigureRow("one job of four pictures beside another user's 20 jobs / alone", measure_slowdown(4), "≤ 2.1", "×"),
        FigureRow("the same for a job of one picture", measure_slowdown(1), "≤ 2.1", "×"),
        _measure_share_equality("one size", (512,)),
        _measure_share_equality("three sizes", (512, 768, 1024)),
    ]


def measure_slowdown(image_count: int) -> float:
    """Return how many times longer a job takes when another user's twenty jobs are already running."""
    flood = [Arrival(f"flood {number}", 0.0, "flood", "guild") for number in range(20)]
    lone_arrival = Arrival("lone", 10.0, "lone", "guild", images=image_count)
    seconds = BatchedSimulation([*flood, lone_arrival]).run().finish_seconds["lone"]
    return seconds / compute_isolated_seconds(lone_arrival)


def _measure_share_equality(size_text: str, sizes: Sequence[int]) -> FigureRow:
    cost_shares = measure_cost_shares(sizes)
    name = f"Jain index of eight backlogged users, {size_text}"
    return FigureRow(name, jain_index(cost_shares), "≥ 0.99", "", samples=len(cost_shares), planned=BACKLOGGED_USERS)


def measure_cost_shares(sizes: Sequence[int]) -> list[float]:
    """Return each user's row-steps weighted by cost; all users have more to do than an hour allows."""
    jobs = [
        Arrival(f"{user}.{number}", float(user), f"user {user}", "guild", sizes[user % len(sizes)], steps=1000)
        for user in range(BACKLOGGED_USERS)
        for number in range(3)
    ]
    return [*BatchedSimulation(jobs, end_time=HOUR_SECONDS).run().cost_by_member.values()]


def fill_percent(result: SimulationResult) -> float:
    """Return how full the forwards were, in percent of their rows without padding; NaN if there were none."""
    forward_count = sum(result.forwards_by_rows.values())
    row_count = sum(rows * count for rows, count in result.forwards_by_rows.items())
    return 100.0 * row_count / (BATCH_LIMIT * forward_count) if forward_count else math.nan


DAY_SECONDS = 86_400.0  # seconds
MEMBER_COUNT = 60
GUILD_COUNT = 6
PEAK_SECOND = 21 * 3600.0  # the busiest hour is nine in the evening
MEAN_GAP_SECONDS = 30.0  # seconds between two requests, averaged over the day, without bursts
FLOOD_COUNT = 4  # times at which one member posts many jobs
RUSH_COUNT = 3  # times at which many members post one job each
CANCEL_SHARE = 0.06


@dataclass(frozen=True)
class Arrival:
    """One job: `images` of `size`² pixels in `steps`. Guidance holds in steps `guidance_start` ≤ k < `guidance_end`.

    `arrival_time` is in seconds. The member cancels the job if it is unfinished `cancel_after` seconds later.
    """

    job_id: str
    arrival_time: float
    member: str
    guild: str
    size: int = 512
    steps: int = 30
    images: int = 4
    guidance_start: int = 0
    guidance_end: int = 1000
    cancel_after: float = math.inf

    def rows_at_step(self, step: int) -> int:
        """Return the network rows of one image at this step."""
        return 2 if self.guidance_start <= step < self.guidance_end else 1


def generate_day(seed: int) -> list[Arrival]:
    """Return the arrivals in order of time; the same seed gives the same day."""
    random = Random(seed)
    requests = [*_draw_single_requests(random), *_draw_floods(random), *draw_bursts(random)]
    return [_draw_arrival(random, number, *request) for number, request in enumerate(sorted(requests))]


def _draw_single_requests(random: Random) -> Iterator[tuple[float, int]]:
    """Yield arrivals of a Poisson process whose rate follows the hour, by thinning (Lewis and Shedler 1979)."""
    time = random.expovariate(2.0 / MEAN_GAP_SECONDS)
    while time < DAY_SECONDS:
        if random.random() < 0.5 * (1.0 + 0.9 * math.cos(2 * math.pi * (time - PEAK_SECOND) / DAY_SECONDS)):
            yield time, _draw_member(random)
        time += random.expovariate(2.0 / MEAN_GAP_SECONDS)


def _draw_member(random: Random) -> int:
    """Draw a member: few post many jobs. Member n posts 1/(n + 1) as often as member 0."""
    return random.choices(range(MEMBER_COUNT), [1.0 / (member + 1) for member in range(MEMBER_COUNT)])[0]


def _draw_floods(random: Random) -> Iterator[tuple[float, int]]:
    for _ in range(FLOOD_COUNT):
        start_time = random.uniform(0.4, 0.95) * DAY_SECONDS
        member = _draw_member(random)
        yield from ((start_time + 2.0 * number, member) for number in range(random.randint(10, 20)))


def draw_bursts(random: Random) -> Iterator[tuple[float, int]]:
    for _ in range(RUSH_COUNT):
        start_time = random.uniform(0.4, 0.95) * DAY_SECONDS
        yield from (
            (start_time + random.uniform(0.0, 60.0), member) for member in random.sample(range(MEMBER_COUNT), 12)
        )


def _draw_arrival(random: Random, job_number: int, arrival_time: float, member: int) -> Arrival:
    steps = random.choice((8, 20, 20, 30, 50))
    guidance_start, guidance_end = (steps // 5, steps * 4 // 5) if random.random() < 0.4 else (0, steps)
    cancel_after = random.expovariate(1 / 20.0) if random.random() < CANCEL_SHARE else math.inf
    size = random.choice((512,) * 7 + (768, 768, 1024))
    return Arrival(
        f"job {job_number}",
        arrival_time,
        f"member {member}",
        f"guild {member % GUILD_COUNT}",
        size,
        steps,
        random.choice((1, 2, 4, 4, 4)),
        guidance_start,
        guidance_end,
        cancel_after,
    )


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
