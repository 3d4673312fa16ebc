"""What Discord counts together, and how much of it may be spent: an interaction's token, or a channel.

Pure; the clock is an argument. A request is counted from the moment it *ended*, so that no jitter on the way can put
more of them into one window at the other side than the budget allows. Knows nothing of jobs but their names.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pace:
    """The budget. `limit` requests in `window` seconds a bucket, of which `reserve` are kept for finals."""

    window: float = 5.0
    limit: int = 5
    reserve: int = 1
    preview: float = 1.25  # seconds between two previews of a job that has its bucket to itself
    place: float = 30.0  # seconds between two edits that only move the place in the queue
    lead: float = 0.5  # no preview starts this shortly before its bucket's next final is due
    newcomer: float = 5.0  # seconds of waiting that a job's first preview has ahead of the others
    previews_a_second: int = 20  # over all buckets
    made_at_once: int = 1  # previews that are being made, before they go out
    requests_a_second: int = 40  # previews and finals; Discord allows 50 in all


@dataclass
class Together:
    """What all buckets may have in a second: a request counts from its start until a second after its end."""

    limit: int
    flying: int = 0
    ended: deque[float] = field(default_factory=deque)

    def begin(self) -> None:
        """A request goes out."""
        self.flying += 1

    def end(self, now: float) -> None:
        """It came back."""
        self.flying -= 1
        self.ended.append(now)
        while len(self.ended) > self.limit:
            self.ended.popleft()

    def free_at(self) -> float:
        """When one more may begin; infinity while only an end can tell."""
        left = self.limit - self.flying
        if left <= 0:
            return math.inf
        return self.ended[-left] + 1.0 if len(self.ended) >= left else -math.inf


@dataclass
class Bucket:
    """One bucket: what was spent, what Discord said, who renders in it and who waits for it."""

    pace: Pace
    limit: int
    busy: bool = False
    until: float = -math.inf  # Discord said: nothing before this
    spent: deque[float] = field(default_factory=deque)  # when the last requests ended
    rendering: dict[str, float] = field(default_factory=dict)  # job → when its final is due
    waiting: set[str] = field(default_factory=set)  # jobs with something to send

    def free_at(self, final: bool, now: float) -> float:
        """The earliest moment from `now` on at which the budget allows a request; infinity while one is under way."""
        if self.busy:
            return math.inf
        allowed = self.limit if final else max(1, self.limit - self.pace.reserve)
        at = max(now, self.until)
        if len(self.spent) >= allowed:
            at = max(at, self.spent[-allowed] + self.pace.window)
        return at

    def clear_at(self, at: float) -> float:
        """`at`, or later if a final is due in this bucket just after it."""
        for due in sorted(due for due in self.rendering.values() if at < due < math.inf):
            if due - self.pace.lead >= at:
                break
            at = due
        return at

    def interval(self) -> float:
        """Seconds between two previews of one job, so that all that render here share what finals leave."""
        return len(self.rendering) * self.pace.window / max(1, self.limit - self.pace.reserve)

    def spend(self, now: float) -> None:
        """A request ended."""
        self.busy = False
        self.spent.append(now)
        while len(self.spent) > self.limit or self.spent[0] <= now - self.pace.window:
            self.spent.popleft()

    def idle(self, now: float) -> bool:
        """True if forgetting it loses nothing."""
        since = now - self.pace.window
        used = self.busy or self.rendering or self.waiting or self.until > since
        return not (used or (self.spent and self.spent[-1] > since))
