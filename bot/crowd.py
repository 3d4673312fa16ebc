"""Estimate of a place in a long queue: assumes that the users of a pool are served in turn. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Crowd:
    """The users who wait in one pool: for each, the number of jobs and their average cost (device-seconds)."""

    def __init__(self, users: Iterable[tuple[int, float]] = ()) -> None:
        ordered = sorted(users)
        self._counts = [count for count, _ in ordered]
        self._jobs = [0, *accumulate(self._counts)]
        self._work = [0.0, *accumulate(count * cost for count, cost in ordered)]
        self._costs = [0.0, *accumulate(cost for _, cost in ordered)]

    def before(self, turn: int) -> tuple[int, float]:
        """Return how many jobs start before a job, and the cost of those jobs and itself.

        `turn`: how many jobs of the same user precede it. Until it starts, each user gets at most `turn` + 1 turns.
        O(log users).
        """
        few = bisect_right(self._counts, turn + 1)
        jobs = self._jobs[few] + (turn + 1) * (len(self._counts) - few)
        return max(0, jobs - 1), self._work[few] + (turn + 1) * (self._costs[-1] - self._costs[few])
