"""A simulated day of a busy server: our scheduler beside one job after another, on the same arrivals.

The device is a table of milliseconds (`engine.bench.simulated`). The figures compare scheduling orders, not speed, and
the same seed gives the same figures on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from engine.bench.arrivals import Arrival, day
from engine.bench.row import Row
from engine.bench.simulated import LIMIT, InTurn, Seen, Together, alone

SEED = 7
BACKLOGGED = 8  # users of equal demand for Jain's index
HOUR = 3600.0


def day_rows(seed: int = SEED) -> list[Row]:
    """Return the simulation's rows; without simpy, one row that says so."""
    if find_spec("simpy") is None:
        missing = "simpy is missing: pip install 'darkroom-bot[bench]'"
        return [Row("a simulated day", None, None, "", missing)]
    return [*compared(day(seed)), *fairness()]


def compared(arrivals: Sequence[Arrival]) -> list[Row]:
    """Run both orders on the same arrivals and return their rows."""
    ours, rival = Together(arrivals).run(), InTurn(arrivals).run()
    both = sorted(ours.finished.keys() & rival.finished.keys())
    times = {job.job: alone(job) for job in arrivals}
    rows = [
        Row(
            "simulated day: jobs that finished",
            len(both),
            None,
            "",
            f"of {len(arrivals)}; the others cancelled",
            len(both),
        )
    ]
    for name, seen in (("ours", ours), ("one after another", rival)):
        slow = [seen.finished[job] / times[job] for job in both]
        first = [seen.preview[job] for job in both]
        for share in (50, 95):
            for told, values, unit in (("first preview", first, "s"), ("time in the system / time alone", slow, "×")):
                figure = percentile(values, share)
                rows.append(Row(f"{told} p{share}, {name}", figure, None, unit, samples=len(values)))
        rows.append(Row(f"rows filled while busy, {name}", filled(seen), None, "%", f"of {LIMIT} a forward"))
    return rows


def fairness() -> list[Row]:
    """Return the rows that show how much one user can slow another."""
    return [
        Row("one job of four pictures beside another user's 20 jobs / alone", beside(4), "≤ 2.1", "×"),
        Row("the same for a job of one picture", beside(1), "≤ 2.1", "×"),
        _equal("one size", (512,)),
        _equal("three sizes", (512, 768, 1024)),
    ]


def beside(images: int) -> float:
    """Return how many times longer a job takes when another user's twenty jobs are already running."""
    flood = [Arrival(f"flood {number}", 0.0, "flood", "guild") for number in range(20)]
    lone = Arrival("lone", 10.0, "lone", "guild", images=images)
    return Together([*flood, lone]).run().finished["lone"] / alone(lone)


def _equal(told: str, sizes: Sequence[int]) -> Row:
    found = shares(sizes)
    name = f"Jain index of eight backlogged users, {told}"
    return Row(name, jain(found), "≥ 0.99", "", samples=len(found), of=BACKLOGGED)


def shares(sizes: Sequence[int]) -> list[float]:
    """Return each user's row-steps weighted by cost; all users have more to do than an hour allows."""
    jobs = [
        Arrival(f"{user}.{number}", float(user), f"user {user}", "guild", sizes[user % len(sizes)], steps=1000)
        for user in range(BACKLOGGED)
        for number in range(3)
    ]
    return [*Together(jobs, until=HOUR).run().cost.values()]


def jain(values: Iterable[float]) -> float:
    """Return Jain's index (Σ x)² / (n Σ x²): 1 if all values are equal (Jain, Chiu and Hawe 1984), NaN if all are 0."""
    each = [*values]
    return sum(each) ** 2 / (len(each) * sum(value * value for value in each)) if any(each) else math.nan


def percentile(values: Iterable[float], share: int) -> float:
    """Return the smallest value that is at least as large as `share` % of the values; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-share * len(ordered) // 100) - 1)] if ordered else math.nan


def filled(seen: Seen) -> float:
    """Return how full the forwards were, in percent of their rows without padding; NaN if there were none."""
    forwards = sum(seen.filled.values())
    rows = sum(rows * count for rows, count in seen.filled.items())
    return 100.0 * rows / (LIMIT * forwards) if forwards else math.nan
