"""Rate-limit buckets, as Discord counts them (an interaction's token, or a channel), and their budgets.

Pure; the clock is an argument. A request is counted from the moment it *ended*. So no jitter on the way can put more of
them into one window on Discord's side than the budget allows. Knows jobs by their ids only.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pace:
    """The budget: `limit` requests in `window` seconds per bucket, of which `reserve` are kept for finals."""

    window: float = 5.0
    limit: int = 5
    reserve: int = 1
    preview: float = 1.25  # seconds between two previews of a job that has its bucket to itself
    place: float = 30.0  # seconds between two edits that only update the place in the queue
    lead: float = 0.5  # no preview starts this shortly before its bucket's next final is due
    newcomer: float = 5.0  # seconds of head start for a job's first preview
    previews_a_second: int = 20  # over all buckets
    made_at_once: int = 1  # previews that are rendered at the same time
    requests_a_second: int = 40  # previews and finals; Discord allows 50 in all


@dataclass
class Together:
    """The limit of all buckets together in a second. A request counts from its start until a second after its end."""

    limit: int
    flying: int = 0
    ended: deque[float] = field(default_factory=deque)

    def begin(self) -> None:
        """Count a request that starts."""
        self.flying += 1

    def end(self, now: float) -> None:
        """Count a request that ended."""
        self.flying -= 1
        self.ended.append(now)
        while len(self.ended) > self.limit:
            self.ended.popleft()

    def free_at(self) -> float:
        """Return when one more may start; infinity while that depends on a running request."""
        left = self.limit - self.flying
        if left <= 0:
            return math.inf
        return self.ended[-left] + 1.0 if len(self.ended) >= left else -math.inf


@dataclass
class Bucket:
    """One bucket: what was spent, what Discord demands, which jobs render in it and which wait for it."""

    pace: Pace
    limit: int
    busy: bool = False
    until: float = -math.inf  # Discord forbids requests before this
    spent: deque[float] = field(default_factory=deque)  # when the last requests ended
    rendering: dict[str, float] = field(default_factory=dict)  # job → when its final is due
    waiting: set[str] = field(default_factory=set)  # jobs with something to send

    def free_at(self, final: bool, now: float) -> float:
        """Return the first moment from `now` on that the budget allows; infinity while a request is running."""
        if self.busy:
            return math.inf
        allowed = self.limit if final else max(1, self.limit - self.pace.reserve)
        at = max(now, self.until)
        if len(self.spent) >= allowed:
            at = max(at, self.spent[-allowed] + self.pace.window)
        return at

    def clear_at(self, at: float) -> float:
        """Return `at`, or later if a final is due in this bucket just after it."""
        for due in sorted(due for due in self.rendering.values() if at < due < math.inf):
            if due - self.pace.lead >= at:
                break
            at = due
        return at

    def interval(self) -> float:
        """Return the seconds between two previews of one job, so that all jobs here share what finals leave."""
        return len(self.rendering) * self.pace.window / max(1, self.limit - self.pace.reserve)

    def spend(self, now: float) -> None:
        """Count a request that ended."""
        self.busy = False
        self.spent.append(now)
        while len(self.spent) > self.limit or self.spent[0] <= now - self.pace.window:
            self.spent.popleft()

    def idle(self, now: float) -> bool:
        """Return whether forgetting the bucket loses nothing."""
        since = now - self.pace.window
        used = self.busy or self.rendering or self.waiting or self.until > since
        return not (used or (self.spent and self.spent[-1] > since))
