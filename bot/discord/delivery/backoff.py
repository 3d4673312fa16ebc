"""Backoff: how long a failed request waits until it is tried again, longer each time, up to a limit.

Pure; the clock is an argument. Knows jobs by their ids, and nothing of messages.
"""

from __future__ import annotations

from collections.abc import Iterable

# seconds until the next attempt in an outage
FIRST_PAUSE = 2.0
MAX_PAUSE = 60.0
# seconds until a job that was given up is tried again
FIRST_JOB_PAUSE = 600.0
MAX_JOB_PAUSE = 86_400.0


def backoff_pause(seconds: float, failures: int) -> float:
    """Return the pause after `failures` failures in a row, at least `seconds`."""
    return max(seconds, min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))) if failures else seconds


class JobBackoff:
    """Jobs whose delivery was given up, and when each is tried again; the pause doubles each time."""

    def __init__(self) -> None:
        self._next_attempts: dict[str, tuple[float, float]] = {}  # time of the next attempt, and the pause before it

    def __len__(self) -> int:
        return len(self._next_attempts)

    def add(self, job: str, now: float) -> None:
        """Give the job up, for twice as long as the last time."""
        pause = min(MAX_JOB_PAUSE, 2 * self._next_attempts[job][1]) if job in self._next_attempts else FIRST_JOB_PAUSE
        self._next_attempts[job] = (now + pause, pause)

    def is_waiting(self, job: str, now: float) -> bool:
        """Return whether the job must still wait for its next attempt."""
        return job in self._next_attempts and now < self._next_attempts[job][0]

    def retain_only(self, jobs: Iterable[str]) -> None:
        """Forget all other jobs: they are settled."""
        self._next_attempts = {job: self._next_attempts[job] for job in jobs if job in self._next_attempts}
