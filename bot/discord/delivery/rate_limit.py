"""Rate-limit buckets, as Discord counts them (an interaction's token, or a channel), and their budgets.

Pure; the clock is an argument. A request counts from the moment it *ended*: so jitter on the way cannot put more
requests into one of Discord's windows than the budget allows. Knows jobs by their ids only.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RateBudget:
    """The budget: `limit` requests in `window` seconds per bucket, of which `final_reserve` are kept for finals."""

    window: float = 5.0
    limit: int = 5
    final_reserve: int = 1
    preview_interval: float = 1.25  # seconds between two previews of a job that has its bucket to itself
    queue_place_interval: float = 30.0  # seconds between two edits that only update the place in the queue
    final_lead: float = 0.5  # no preview starts this shortly before its bucket's next final is due
    first_preview_lead: float = 5.0  # seconds of head start for a job's first preview
    previews_per_second: int = 20  # over all buckets
    renders_at_once: int = 1  # previews that are rendered at the same time
    requests_per_second: int = 40  # previews and finals; Discord allows 50 in all


@dataclass
class GlobalLimit:
    """The limit of all buckets together in a second. A request counts from its start until a second after its end."""

    limit: int
    in_flight: int = 0
    end_times: deque[float] = field(default_factory=deque)

    def start_request(self) -> None:
        """Count a request that starts."""
        self.in_flight += 1

    def end_request(self, now: float) -> None:
        """Count a request that ended."""
        self.in_flight -= 1
        self.end_times.append(now)
        while len(self.end_times) > self.limit:
            self.end_times.popleft()

    def free_at(self) -> float:
        """Return when one more may start; infinity while that depends on a running request."""
        free_slots = self.limit - self.in_flight
        if free_slots <= 0:
            return math.inf
        return self.end_times[-free_slots] + 1.0 if len(self.end_times) >= free_slots else -math.inf


@dataclass
class Bucket:
    """One bucket: recent requests, what Discord demands, which jobs render in it and which wait for it."""

    budget: RateBudget
    limit: int
    is_busy: bool = False
    blocked_until: float = -math.inf  # Discord forbids requests before this
    request_ends: deque[float] = field(default_factory=deque)  # when the last requests ended
    final_due_times: dict[str, float] = field(default_factory=dict)  # job → when its final is due
    waiting_jobs: set[str] = field(default_factory=set)  # jobs with something to send

    def free_at(self, is_final: bool, now: float) -> float:
        """Return the first moment from `now` on that the budget allows; infinity while a request is running."""
        if self.is_busy:
            return math.inf
        max_requests = self.limit if is_final else max(1, self.limit - self.budget.final_reserve)
        earliest = max(now, self.blocked_until)
        if len(self.request_ends) >= max_requests:
            earliest = max(earliest, self.request_ends[-max_requests] + self.budget.window)
        return earliest

    def avoid_finals(self, start: float) -> float:
        """Return `start`, or later if a final is due in this bucket just after it."""
        for due in sorted(due for due in self.final_due_times.values() if start < due < math.inf):
            if due - self.budget.final_lead >= start:
                break
            start = due
        return start

    def preview_interval(self) -> float:
        """Return the seconds between two previews of one job, so that all jobs here share what finals leave over."""
        return len(self.final_due_times) * self.budget.window / max(1, self.limit - self.budget.final_reserve)

    def record_request(self, now: float) -> None:
        """Count a request that ended."""
        self.is_busy = False
        self.request_ends.append(now)
        while len(self.request_ends) > self.limit or self.request_ends[0] <= now - self.budget.window:
            self.request_ends.popleft()

    def is_idle(self, now: float) -> bool:
        """Return whether forgetting the bucket loses nothing."""
        window_start = now - self.budget.window
        in_use = self.is_busy or self.final_due_times or self.waiting_jobs or self.blocked_until > window_start
        return not (in_use or (self.request_ends and self.request_ends[-1] > window_start))
