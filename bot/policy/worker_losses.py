"""Decides whether the workers that a job lost point at the job, and how long it waits for its next attempt. Pure.

A job may kill its workers, and workers may die for other reasons. Only this tells the two apart: does anything else
break at that time? So a loss is no evidence against a job if, within `QUIET_SECONDS` of it,

- another job's worker was lost without this job, or
- the bot started, or the broker was away.

A loss that other jobs shared is weak evidence: it counts half. A job is poison at `POISON_EVIDENCE` such losses since
its last progress. Until then it is tried again, with growing pauses. The pauses differ by job, so that a poison job and
its neighbours do not return together.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

QUIET_SECONDS = 60.0
POISON_EVIDENCE = 3.0  # losses that no other job shared; a shared one counts `SHARED_WEIGHT`
SHARED_WEIGHT = 0.5
PROBATION_ATTEMPTS = 2  # attempts without progress after which the broker may not redeliver the job by itself
# seconds
FIRST_PAUSE = 10.0
MAX_PAUSE = 300.0
# remembered
MAX_LOSSES = 2000
MAX_OUTAGES = 100


@dataclass(frozen=True)
class WorkerLoss:
    """A job lost its worker: claimed at `claimed_at`, missed at `found_at`, in seconds since 1970."""

    job: str
    worker: str
    claimed_at: float
    found_at: float

    def is_shared_with(self, other: WorkerLoss) -> bool:
        """Return whether both jobs were on the same worker at the same time."""
        is_same_time = self.claimed_at <= other.found_at and other.claimed_at <= self.found_at
        return self.job != other.job and self.worker == other.worker and is_same_time


class LossLog:
    """What one bot has seen break. After a restart it knows nothing, and so blames nobody."""

    def __init__(self) -> None:
        self._losses: deque[WorkerLoss] = deque(maxlen=MAX_LOSSES)
        self._outages: deque[float] = deque(maxlen=MAX_OUTAGES)

    def record_loss(self, loss: WorkerLoss) -> None:
        """Remember that a job lost its worker."""
        self._losses.append(loss)

    def record_outage(self, now: float) -> None:
        """Remember that bot or broker was away until `now`."""
        self._outages.append(now)

    def points_at(self, job: str, idle_attempts: int) -> bool:
        """Return whether the job's last losses, at most `idle_attempts`, are evidence enough that it is poison."""
        own_losses = [loss for loss in self._losses if loss.job == job]
        counted = own_losses[max(0, len(own_losses) - idle_attempts) :]
        return sum(self._weigh(loss, own_losses) for loss in counted) >= POISON_EVIDENCE

    def _weigh(self, loss: WorkerLoss, own_losses: list[WorkerLoss]) -> float:
        if any(abs(outage - loss.found_at) <= QUIET_SECONDS for outage in self._outages):
            return 0.0
        others = [other for other in self._losses if other.job != loss.job]
        for other in others:
            is_near = abs(other.found_at - loss.found_at) <= QUIET_SECONDS
            if is_near and not any(other.is_shared_with(own) for own in own_losses):
                return 0.0
        return SHARED_WEIGHT if any(loss.is_shared_with(other) for other in others) else 1.0


def is_on_probation(idle_attempts: int) -> bool:
    """Return whether only the bot may bring the job back, after a pause, once its next worker is lost too."""
    return idle_attempts >= PROBATION_ATTEMPTS


def retry_pause(job: str, idle_attempts: int) -> float:
    """Return the seconds until the next attempt: none at first, then about twice as many each time, varied by job."""
    if idle_attempts <= PROBATION_ATTEMPTS:
        return 0.0
    doublings = min(idle_attempts - PROBATION_ATTEMPTS - 1, 10)
    variation = random.Random(f"{job} {idle_attempts}").uniform(0.5, 1.0)
    return min(MAX_PAUSE, FIRST_PAUSE * 2**doublings) * variation  # jobs in step with each other part again
