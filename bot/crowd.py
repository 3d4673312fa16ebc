"""Estimate of a place in a long queue: assumes that the users of a pool are served in turn. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class WaitEstimate:
    """The users who wait in one pool: for each, the number of jobs and their average cost (device-seconds)."""

    def __init__(self, users: Iterable[tuple[int, float]] = ()) -> None:
        sorted_users = sorted(users)
        self._job_counts = [count for count, _ in sorted_users]
        self._job_sums = [0, *accumulate(self._job_counts)]
        self._work_sums = [0.0, *accumulate(count * cost for count, cost in sorted_users)]
        self._cost_sums = [0.0, *accumulate(cost for _, cost in sorted_users)]

    def estimate(self, own_ahead: int) -> tuple[int, float]:
        """Return how many jobs start before a job, and the cost of those jobs and itself.

        `turn`: how many jobs of the same user precede it. Until it starts, each user gets at most `turn` + 1 turns.
        O(log users).
        """
        short_queues = bisect_right(self._job_counts, own_ahead + 1)
        jobs = self._job_sums[short_queues] + (own_ahead + 1) * (len(self._job_counts) - short_queues)
        return max(0, jobs - 1), self._work_sums[short_queues] + (own_ahead + 1) * (
            self._cost_sums[-1] - self._cost_sums[short_queues]
        )
