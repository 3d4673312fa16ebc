"""Which message is edited now: one policy for all jobs.

Pure: the clock is an argument, the content is opaque. It keeps the newest content of each job, sends finals before
previews, never has two requests under way in one bucket, never spends more than a bucket's budget, and widens the
interval between previews as more jobs render. It knows nothing of Discord, messages or pictures.

A *bucket* is whatever Discord counts together: an interaction token, or a channel. A request is counted from the moment
it *ended*, so that no jitter on the way can put more of them into one window at the other side than the budget allows.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Kind = Literal["place", "preview", "final"]
T = TypeVar("T")

REMEMBERED = 4096  # ended jobs whose late frames are still ignored
SWEPT = 256  # buckets, before the idle ones are forgotten


@dataclass(frozen=True)
class Pace:
    """The budget. `limit` requests in `window` seconds a bucket, of which `reserve` are kept for finals."""

    window: float = 5.0
    limit: int = 5
    reserve: int = 1
    preview: float = 1.25  # seconds between two previews of a job that has its bucket to itself
    place: float = 30.0  # seconds between two edits that only move the place in the queue
    lead: float = 0.5  # no preview starts this shortly before its bucket's next final is due
    previews_a_second: int = 20  # over all buckets; Discord allows 50 requests a second in all
    finals_a_second: int = 40


@dataclass(frozen=True)
class Edit(Generic[T]):
    """Content that waits for its turn, or is under way."""

    job: str
    bucket: str
    kind: Kind
    content: T
    since: float


@dataclass
class _Bucket:
    spent: deque[float] = field(default_factory=deque)  # when the last requests ended
    limit: int = 5
    busy: bool = False
    until: float = -math.inf
    rendering: dict[str, float] = field(default_factory=dict)  # job → when its final is due

    def idle(self, since: float) -> bool:
        return not (self.busy or self.rendering or (self.spent and self.spent[-1] > since) or self.until > since)


class Edits(Generic[T]):
    """The newest content of every job and the budget of every bucket."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self._waiting: dict[str, Edit[T]] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._where: dict[str, str] = {}  # rendering job → bucket
        self._started: dict[str, float] = {}  # job → when its last edit began
        self._not_before: dict[str, float] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._recent: deque[float] = deque()  # starts in all buckets

    def offer(self, edit: Edit[T], due: float = math.inf) -> bool:
        """Take `edit` as the job's newest content; False if the job has ended and this is no final.

        `due` is when the job's final is expected, on the same clock as `since`.
        """
        if edit.kind == "final":
            self._end(edit.job)
        elif edit.job in self._ended:
            return False
        elif edit.kind == "preview":
            self._move(edit.job, edit.bucket, due)
        known = self._waiting.get(edit.job)
        if known and known.kind == edit.kind:  # its place in the line stays
            edit = Edit(edit.job, edit.bucket, edit.kind, edit.content, known.since)
        self._waiting[edit.job] = edit
        return True

    def take(self, now: float) -> Edit[T] | None:
        """What to send now, or None. The bucket is busy until `sent` or `failed` is called with the same edit."""
        ready = [edit for edit in self._waiting.values() if self._ready_at(edit, now) <= now]
        if not ready:
            return None
        edit = min(ready, key=self._turn)
        del self._waiting[edit.job]
        self._bucket(edit.bucket).busy = True
        self._started[edit.job] = now
        self._not_before.pop(edit.job, None)
        self._recent.append(now)
        while len(self._recent) > self.pace.finals_a_second:
            self._recent.popleft()
        return edit

    def sent(self, edit: Edit[T], now: float) -> None:
        """The request ended well."""
        self._spend(edit.bucket, now)
        if edit.kind == "final" and edit.job not in self._waiting:
            self._started.pop(edit.job, None)

    def failed(self, edit: Edit[T], now: float, after: float = 0.0) -> None:
        """The request ended badly: it waits again for `after` seconds, unless something newer has come."""
        self._spend(edit.bucket, now)
        newer = self._waiting.get(edit.job)
        stale = edit.kind != "final" and edit.job in self._ended
        if not stale and (newer is None or (edit.kind == "final" and newer.kind != "final")):
            self._waiting[edit.job] = edit
        self._not_before[edit.job] = now + after

    def hold(self, bucket: str, until: float) -> None:
        """Discord said so: nothing in this bucket before `until`."""
        known = self._bucket(bucket)
        known.until = max(known.until, until)

    def learn(self, bucket: str, limit: int, remaining: int, resets: float) -> None:
        """What the answer's headers say of the bucket: its size, what is left, and when it is full again."""
        self._bucket(bucket).limit = max(1, limit)
        if remaining <= 0:
            self.hold(bucket, resets)

    def drop(self, job: str) -> None:
        """Nothing of this job is to be sent any more."""
        self._end(job)
        self._waiting.pop(job, None)
        self._started.pop(job, None)
        self._not_before.pop(job, None)

    def wake(self, now: float) -> float:
        """When `take` may next have something, as far as is known now; infinity when only an event can change that."""
        return min((self._ready_at(edit, now) for edit in self._waiting.values()), default=math.inf)

    def interval(self, bucket: str) -> float:
        """Seconds between two previews of one job in this bucket."""
        known, pace = self._bucket(bucket), self.pace
        here = len(known.rendering) * pace.window / max(1, known.limit - pace.reserve)
        everywhere = len(self._where) / pace.previews_a_second
        return max(pace.preview, here, everywhere)

    def _turn(self, edit: Edit[T]) -> tuple[bool, float]:
        """Finals first, the longest waiting of them first; then whoever was served longest ago."""
        final = edit.kind == "final"
        return not final, edit.since if final else self._started.get(edit.job, -math.inf)

    def _ready_at(self, edit: Edit[T], now: float) -> float:
        bucket = self._bucket(edit.bucket)
        if bucket.busy:
            return math.inf
        final = edit.kind == "final"
        allowed = bucket.limit if final else max(1, bucket.limit - self.pace.reserve)
        at = max(now, self._not_before.get(edit.job, -math.inf), bucket.until, self._overall(final))
        if len(bucket.spent) >= allowed:
            at = max(at, bucket.spent[-allowed] + self.pace.window)
        return at if final else self._clear(bucket, max(at, self._rested(edit)))

    def _rested(self, edit: Edit[T]) -> float:
        """When the job's last edit is long enough ago."""
        last = self._started.get(edit.job, -math.inf)
        return last + (self.pace.place if edit.kind == "place" else self.interval(edit.bucket))

    def _clear(self, bucket: _Bucket, at: float) -> float:
        """`at`, or later if a final is due in this bucket just after it."""
        for due in sorted(bucket.rendering.values()):
            if due - self.pace.lead < at < due:
                at = due
        return at

    def _overall(self, final: bool) -> float:
        allowed = self.pace.finals_a_second if final else self.pace.previews_a_second
        return self._recent[-allowed] + 1.0 if len(self._recent) >= allowed else -math.inf

    def _spend(self, name: str, now: float) -> None:
        bucket = self._bucket(name)
        bucket.busy = False
        bucket.spent.append(now)
        while len(bucket.spent) > bucket.limit or bucket.spent[0] <= now - self.pace.window:
            bucket.spent.popleft()
        self._sweep(now)

    def _bucket(self, name: str) -> _Bucket:
        return self._buckets.setdefault(name, _Bucket(limit=self.pace.limit))

    def _move(self, job: str, bucket: str, due: float) -> None:
        if self._where.get(job, bucket) != bucket:
            self._leave(job)
        self._where[job] = bucket
        self._bucket(bucket).rendering[job] = due

    def _leave(self, job: str) -> None:
        bucket = self._where.pop(job, None)
        if bucket is not None:
            self._bucket(bucket).rendering.pop(job, None)

    def _end(self, job: str) -> None:
        self._leave(job)
        self._ended[job] = None
        self._ended.move_to_end(job)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _sweep(self, now: float) -> None:
        """Forget the buckets that nobody uses: each interaction brings one."""
        if len(self._buckets) > SWEPT:
            used = {edit.bucket for edit in self._waiting.values()}
            since = now - self.pace.window
            for name in [name for name, each in self._buckets.items() if name not in used and each.idle(since)]:
                del self._buckets[name]
