"""Job arrivals of one simulated day on a busy server, drawn from a seed. Imports no engine and no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

DAY = 86_400.0  # seconds
MEMBERS, GUILDS = 60, 6
PEAK = 21 * 3600.0  # the busiest hour is nine in the evening
MEAN_GAP = 30.0  # seconds between two requests, averaged over the day, without bursts
FLOODS = 4  # times at which one member posts many jobs
RUSHES = 3  # times at which many members post one job each
CANCELLED = 0.06


@dataclass(frozen=True)
class Arrival:
    """One job: `images` of `size`² pixels in `steps`. Guidance holds in steps `first` ≤ k < `end`.

    `at` is in seconds. `patience` is the number of seconds after `at` when the member cancels an unfinished job.
    """

    job: str
    at: float
    user: str
    guild: str
    size: int = 512
    steps: int = 30
    images: int = 4
    first: int = 0
    end: int = 1000
    patience: float = math.inf

    def rows(self, k: int) -> int:
        """Return the network rows of one image at step `k`."""
        return 2 if self.first <= k < self.end else 1


def day(seed: int) -> list[Arrival]:
    """Return the arrivals in order of time; the same seed gives the same day."""
    random = Random(seed)
    asked = [*_ordinary(random), *_floods(random), *_rushes(random)]
    return [_job(random, number, *each) for number, each in enumerate(sorted(asked))]


def _ordinary(random: Random) -> Iterator[tuple[float, int]]:
    """Yield arrivals of a Poisson process whose rate follows the hour, by thinning (Lewis and Shedler 1979)."""
    at = random.expovariate(2.0 / MEAN_GAP)
    while at < DAY:
        if random.random() < 0.5 * (1.0 + 0.9 * math.cos(2 * math.pi * (at - PEAK) / DAY)):
            yield at, _member(random)
        at += random.expovariate(2.0 / MEAN_GAP)


def _member(random: Random) -> int:
    """Draw a member: few post many jobs. Member n posts 1/(n + 1) as often as member 0."""
    return random.choices(range(MEMBERS), [1.0 / (number + 1) for number in range(MEMBERS)])[0]


def _floods(random: Random) -> Iterator[tuple[float, int]]:
    for _ in range(FLOODS):
        at, member = random.uniform(0.4, 0.95) * DAY, _member(random)
        yield from ((at + 2.0 * number, member) for number in range(random.randint(10, 20)))


def _rushes(random: Random) -> Iterator[tuple[float, int]]:
    for _ in range(RUSHES):
        at = random.uniform(0.4, 0.95) * DAY
        yield from ((at + random.uniform(0.0, 60.0), member) for member in random.sample(range(MEMBERS), 12))


def _job(random: Random, number: int, at: float, member: int) -> Arrival:
    steps = random.choice((8, 20, 20, 30, 50))
    first, end = (steps // 5, steps * 4 // 5) if random.random() < 0.4 else (0, steps)
    patience = random.expovariate(1 / 20.0) if random.random() < CANCELLED else math.inf
    size = random.choice((512,) * 7 + (768, 768, 1024))
    return Arrival(
        f"job {number}", at, f"member {member}", f"guild {member % GUILDS}", size, steps,
        random.choice((1, 2, 4, 4, 4)), first, end, patience,
    )  # fmt: skip
