"""Paces: jobs whose steps begin some seconds apart, so that people have time to steer. No torch.

Between two steps such a job takes no rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _PacedJob:
    seconds: float
    due: float  # when its next step may begin
    step: int = -1  # the least step of its images when it began to wait
    is_waiting: bool = False


class StepPaces:
    """Says when which job must wait; the engine takes it from the scheduler and gives it back. `clock`: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[str, _PacedJob] = {}

    def set_pace(self, job: str, seconds: float) -> None:
        """Let the steps of a job begin so many seconds apart; with 0, as soon as they can."""
        now = self._clock()
        paced_job = self._jobs.setdefault(job, _PacedJob(seconds, now))
        paced_job.due = max(now, paced_job.due + seconds - paced_job.seconds) if paced_job.is_waiting else now
        paced_job.seconds = seconds

    def record_step(self, job: str, step: int) -> bool:
        """Record the least step that a job's images have reached. Return whether the job must wait now.

        Images of one job need not step together: a step counts once the last of them has taken it. A job that is late
        goes on at once, and does not catch up.
        """
        paced_job = self._jobs.get(job)
        if paced_job is None or paced_job.seconds <= 0 or step <= paced_job.step:
            return False
        now = self._clock()
        paced_job.step, paced_job.due = step, max(now, paced_job.due + paced_job.seconds)
        paced_job.is_waiting = paced_job.due > now
        return paced_job.is_waiting

    def is_waiting(self, job: str) -> bool:
        """Return whether the job must not step now."""
        return job in self._jobs and self._jobs[job].is_waiting

    @property
    def seconds_until_due(self) -> float | None:
        """Seconds until the first waiting job is due, at least 0; None if no job waits."""
        times = [paced_job.due for paced_job in self._jobs.values() if paced_job.is_waiting]
        return max(0.0, min(times) - self._clock()) if times else None

    @property
    def has_due_jobs(self) -> bool:
        """Whether a waiting job may step now."""
        return self.seconds_until_due == 0.0

    def take_due_jobs(self) -> list[str]:
        """Return the jobs that need not wait any longer."""
        now = self._clock()
        jobs = [job for job, paced_job in self._jobs.items() if paced_job.is_waiting and paced_job.due <= now]
        for job in jobs:
            self._jobs[job].is_waiting = False
        return jobs

    def forget(self, job: str) -> None:
        """Drop a job that has left."""
        self._jobs.pop(job, None)
