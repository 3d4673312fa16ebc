"""What the worker says of running jobs: pauses, weights and paces. They hold for images that are scheduled later, too.

No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic

from engine.batching.scheduler import Scheduler
from engine.batching.share_tree import E
from engine.batching.step_paces import StepPaces


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
