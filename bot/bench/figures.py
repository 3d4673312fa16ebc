"""Figures from measured times: percentiles, growth, fairness, and each figure as a row beside its goal. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from engine.bench.row import Row, as_json, as_table

__all__ = ["GOALS", "Row", "as_json", "as_table", "at", "growth", "jain", "missing", "pace", "row", "shared_out"]

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
        "worker killed → its job goes on elsewhere": ("≤ 12", "s"),
        "worker killed: its work repeated": ("≤ 2", "s"),
        "worker stopped in order → its job goes on elsewhere": ("≤ 1", "s"),
    }
)
OF_A_SERVER: Mapping[str, str] = MappingProxyType({"accepted jobs a second": "≥ 500"})
EMBEDDED = "SQLite"


def row(name: str, database: str, figure: float | None, note: str = "", *, samples: int, of: int) -> Row:
    """Return a figure beside its goal, with the number of samples taken and of samples expected."""
    goal, unit = GOALS[name]
    goal = goal if database == EMBEDDED else OF_A_SERVER.get(name, goal)
    return Row(f"{name} ({database})", figure, goal, unit, note, samples, of)


def missing(database: str, names: Sequence[str], why: str) -> list[Row]:
    """Return the rows of what could not be measured: they never pass."""
    return [row(name, database, None, why, samples=1, of=1) for name in names]


def at(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie, by the nearest rank: an observed one. NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def growth(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the exponent e of time ~ size^e, by least squares over the logarithms."""
    return statistics.linear_regression([math.log(each) for each in sizes], [math.log(each) for each in times]).slope


def pace(moments: Sequence[float]) -> float:
    """Return how many a second, by least squares through these times: a batch that ends at once counts once."""
    if len(moments) < 2:
        return 0.0
    return 1.0 / statistics.linear_regression(range(len(moments)), sorted(moments)).slope


def jain(shares: Sequence[float]) -> float:
    """Return Jain's fairness index (Jain, Chiu, Hawe 1984): 1 where all have the same, 1/n where one has everything."""
    squares = sum(each * each for each in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def shared_out(picked: Sequence[str], users: int) -> int:
    """Return the most picked jobs of a user minus the fewest, among so many users."""
    counts = [picked.count(user) for user in set(picked)]
    counts += [0] * (users - len(counts))
    return max(counts, default=0) - min(counts, default=0)
