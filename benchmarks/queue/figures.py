"""The rows of `darkroom bench queue`: each figure's goal and unit, on either database. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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


def make_row(name: str, figure: float | None, note: str, samples: int, planned: int) -> FigureRow:
    """Return a figure beside its goal, with the number of samples taken and of samples planned."""
    return FigureRow(name, figure, *GOALS[name], note, samples, planned)


def name_database(rows: Sequence[FigureRow], database: str) -> list[FigureRow]:
    """Return the rows with the database in their names, and with its own goals."""
    goals: Mapping[str, str] = {} if database == SQLITE else POSTGRESQL_GOALS
    return [replace(row, name=f"{row.name} ({database})", goal=goals.get(row.name, row.goal)) for row in rows]


def pick_spread(picked_users: Sequence[str], users: int) -> int:
    """Return the most picked jobs of a user minus the fewest, among so many users."""
    counts = [picked_users.count(user) for user in set(picked_users)]
    counts += [0] * (users - len(counts))
    return max(counts, default=0) - min(counts, default=0)
