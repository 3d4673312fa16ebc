"""What the worker says of running jobs: pauses, weights and paces. They hold for images that are scheduled later, too.

No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic

from engine.batching.scheduler import Scheduler
from engine.batching.share_tree import E


class JobControls(Generic[E]):
    """Takes paused jobs, and jobs that wait for their pace, from the scheduler. `clock`: in seconds."""

    def __init__(self, scheduler: Scheduler[E], clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._paces = StepPaces(clock)
        self._paused_jobs = set[str]()  # also while all images of a job are busy
        self._weights: dict[str, float] = {}

    @property
    def has_due_jobs(self) -> bool:
        """Whether a job that waited for its pace may step now."""
        return self._paces.has_due_jobs

    @property
    def seconds_until_due(self) -> float | None:
        """Seconds until the next step of a job that waits for its pace; None if none waits."""
        return self._paces.seconds_until_due

    def pause(self, job: str) -> None:
        self._paused_jobs.add(job)
        self._scheduler.pause(job)

    def resume(self, job: str) -> None:
        self._paused_jobs.discard(job)
        if not self._paces.is_waiting(job):
            self._scheduler.resume(job)

    def set_weight(self, job: str, weight: float) -> None:
        """Set a job's weight. Raises ValueError outside (0, 1000]."""
        self._scheduler.set_job_weight(job, weight)
        self._weights[job] = weight

    def set_pace(self, job: str, seconds: float) -> None:
        self._paces.set_pace(job, seconds)

    def apply_to(self, job: str) -> None:
        """Apply all to an image of the job that has just been scheduled."""
        if job in self._weights:
            self._scheduler.set_job_weight(job, self._weights[job])
        if job in self._paused_jobs or self._paces.is_waiting(job):
            self._scheduler.pause(job)

    def resume_due_jobs(self) -> None:
        """Give back the jobs whose next step is due."""
        for job in self._paces.take_due_jobs():
            if job not in self._paused_jobs:
                self._scheduler.resume(job)

    def keep_paces(self, steps: Iterable[tuple[str, int]]) -> None:
        """Take jobs that have just stepped until their next steps are due. `steps`: the least step of each job."""
        for job, step in steps:
            if self._paces.record_step(job, step):
                self._scheduler.pause(job)

    def forget(self, job: str) -> None:
        """Drop a job that has left."""
        self._paused_jobs.discard(job)
        self._weights.pop(job, None)
        self._paces.forget(job)


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
