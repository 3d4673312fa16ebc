"""Job arrivals of one simulated day on a busy server, drawn from a seed. Imports no engine and no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

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
