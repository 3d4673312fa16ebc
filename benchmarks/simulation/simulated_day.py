"""A simulated day of a busy server: our scheduler beside one job after another, on the same arrivals.

The device is a table of milliseconds (`benchmarks.simulation.simulated_device`). The figures compare scheduling orders,
not speed, and the same seed gives the same figures on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import jain_index, percentile
from benchmarks.simulation.arrivals import Arrival, generate_day
from benchmarks.simulation.simulated_device import (
    BATCH_LIMIT,
    BatchedSimulation,
    SequentialSimulation,
    SimulationResult,
    compute_isolated_seconds,
)

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
