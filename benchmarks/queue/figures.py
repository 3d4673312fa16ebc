"""Figures from measured times: percentiles, growth, rates, and each figure as a row beside its goal. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from benchmarks.report.figure_row import FigureRow

# Each figure's goal and unit, for both databases.
GOALS: Mapping[str, tuple[str | None, str]] = MappingProxyType(
    {
        "enqueue → first step, idle, p50": (None, "ms"),
        "enqueue → first step, idle, p99": ("≤ 50", "ms"),
        "frame → the bot's subscriber, p99": ("≤ 20", "ms"),
        "frame → 100 viewers, p50": (None, "ms"),
        "frame → 100 viewers, p99": ("≤ 20", "ms"),
        "accepted jobs a second": ("≥ 200", ""),  # for SQLite; PostgreSQL's goal is below
        "accepted jobs: most jobs of one user beyond another's in the next picks": ("≤ 1", ""),
        "pick of 1,000 queued by 100 users, p50": (None, "ms"),
        "pick of 10,000 queued by 1,000 users, p50": (None, "ms"),
        "pick of 100,000 queued by 10,000 users, p50": (None, "ms"),
        "pick of 100,000 queued by 10,000 users, p99": ("≤ 10", "ms"),
        "pick: exponent of its growth, from 1,000 to 100,000 queued": ("≤ 0.5", ""),
        "a flood and nine others: a light user's first step": ("≤ 2", "s"),
        "a flood and one other: a light user's finish ÷ alone": ("≤ 2.1", "×"),
        "a flood and nine others: Jain's index by cost": ("≥ 0.95", ""),
        "worker killed → its job resumes elsewhere": ("≤ 12", "s"),
        "worker killed: its work repeated": ("≤ 2", "s"),
        "worker stopped in order → its job resumes elsewhere": ("≤ 1", "s"),
    }
)
POSTGRESQL_GOALS: Mapping[str, str] = MappingProxyType({"accepted jobs a second": "≥ 500"})
SQLITE = "SQLite"


def make_row(
    name: str, database: str, figure: float | None, note: str = "", *, samples: int, expected: int
) -> FigureRow:
    """Return a figure beside its goal, with the number of samples taken and of samples expected."""
    goal, unit = GOALS[name]
    goal = goal if database == SQLITE else POSTGRESQL_GOALS.get(name, goal)
    return FigureRow(f"{name} ({database})", figure, goal, unit, note, samples, expected)


def missing_rows(database: str, names: Sequence[str], reason: str) -> list[FigureRow]:
    """Return the rows of figures that could not be measured: they never pass."""
    return [make_row(name, database, None, reason, samples=1, expected=1) for name in names]


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return the smallest value that at least a share `quantile` of them does not exceed. NaN if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


def growth_exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the exponent e of time ~ size^e, by least squares over the logarithms."""
    return statistics.linear_regression([math.log(each) for each in sizes], [math.log(each) for each in times]).slope


def rate_per_second(times: Sequence[float]) -> float:
    """Return how many a second, by least squares through these times: a batch that ends at once counts once."""
    if len(times) < 2:
        return 0.0
    return 1.0 / statistics.linear_regression(range(len(times)), sorted(times)).slope


def pick_spread(picked_users: Sequence[str], users: int) -> int:
    """Return the most picked jobs of a user minus the fewest, among so many users."""
    counts = [picked_users.count(user) for user in set(picked_users)]
    counts += [0] * (users - len(counts))
    return max(counts, default=0) - min(counts, default=0)
