"""A place in a queue that was not laid out: an estimate, as if the users of a pool were served in turn. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Crowd:
    """Those who wait in one pool: of each user, how many jobs, and what one costs on average (device-seconds)."""

    def __init__(self, users: Iterable[tuple[int, float]] = ()) -> None:
        ordered = sorted(users)
        self._counts = [count for count, _ in ordered]
        self._jobs = [0, *accumulate(self._counts)]
        self._work = [0.0, *accumulate(count * cost for count, cost in ordered)]
        self._costs = [0.0, *accumulate(cost for _, cost in ordered)]

    def before(self, turn: int) -> tuple[int, float]:
        """Jobs that start before one which `turn` others of its own user precede, and the cost of them and of itself.

        Everybody has at most `turn` + 1 turns until then. O(log users).
        """
        few = bisect_right(self._counts, turn + 1)
        jobs = self._jobs[few] + (turn + 1) * (len(self._counts) - few)
        return max(0, jobs - 1), self._work[few] + (turn + 1) * (self._costs[-1] - self._costs[few])
