"""Backoff: how long a failed request waits until it is tried again, longer each time, up to a limit.

Pure; the clock is an argument. Knows jobs by their ids, and nothing of messages.
"""

from __future__ import annotations

from collections.abc import Iterable

FIRST, LONGEST = 2.0, 60.0  # seconds until the next attempt in an outage
GIVEN_UP, AT_MOST = 600.0, 86_400.0  # seconds until a job that was given up is tried again


def longer(seconds: float, times: int) -> float:
    """Return the pause after `times` failures in a row, at least `seconds`."""
    return max(seconds, min(LONGEST, FIRST * 2.0 ** min(times - 1, 16))) if times else seconds


class GivenUp:
    """Jobs that were given up, and when each is tried again; the pause doubles each time."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # when, and the pause that led there

    def __len__(self) -> int:
        return len(self._until)

    def add(self, job: str, now: float) -> None:
        """Give the job up, for twice as long as the last time."""
        pause = min(AT_MOST, 2 * self._until[job][1]) if job in self._until else GIVEN_UP
        self._until[job] = (now + pause, pause)

    def waits(self, job: str, now: float) -> bool:
        """Return whether the job's next attempt is still ahead."""
        return job in self._until and now < self._until[job][0]

    def keep(self, jobs: Iterable[str]) -> None:
        """Forget all jobs but these: the others are settled."""
        self._until = {job: self._until[job] for job in jobs if job in self._until}
