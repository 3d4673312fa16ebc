"""Which message is edited now: one policy for all jobs.

Pure: the clock is an argument, the content is opaque. It keeps the newest content of each job, sends finals before
previews, never has two requests under way in one bucket, never spends more than a bucket's budget, and widens the
interval between previews as more jobs render. It knows nothing of Discord, messages or pictures.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from bot.chat.buckets import Bucket, Pace

Kind = Literal["place", "preview", "final"]
T = TypeVar("T")

REMEMBERED = 4096  # ended jobs whose late frames are still ignored
SWEPT = 256  # buckets, before the idle ones are forgotten: each interaction brings one


@dataclass(frozen=True)
class Edit(Generic[T]):
    """Content that waits for its turn since `since`, or is under way."""

    job: str
    bucket: str
    kind: Kind
    content: T
    since: float

    @property
    def final(self) -> bool:
        return self.kind == "final"


class Edits(Generic[T]):
    """The newest content of every job and the budget of every bucket."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self._waiting: dict[str, Edit[T]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._where: dict[str, str] = {}  # rendering job → bucket
        self._started: dict[str, float] = {}  # job → when its last edit began
        self._not_before: dict[str, float] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._recent: deque[float] = deque()  # starts in all buckets
        self._next = -math.inf  # nothing can be taken before this moment

    def offer(self, edit: Edit[T], due: float = math.inf) -> bool:
        """Take `edit` as the job's newest content; False if the job has ended and this is no final.

        `due` is when the job's final is expected, on the same clock as `since`.
        """
        if edit.final:
            self._end(edit.job)
        elif edit.job in self._ended:
            return False
        elif edit.kind == "preview":
            self._move(edit.job, edit.bucket, due)
        known = self._waiting.get(edit.job)
        same = known is not None and known.kind == edit.kind
        self._wait(replace(edit, since=known.since) if known and same else edit)
        self._next = min(self._next, self._ready_at(edit, edit.since))
        return True

    def take(self, now: float) -> Edit[T] | None:
        """What to send now, or None. The bucket is busy until `sent` or `failed` is called with the same edit."""
        if now < self._next:
            return None
        times = {job: self._ready_at(edit, now) for job, edit in self._waiting.items()}
        ready = [self._waiting[job] for job, at in times.items() if at <= now]
        if not ready:
            self._next = min(times.values(), default=math.inf)
            return None
        edit = min(ready, key=self._turn)
        self._leave_line(edit.job)
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
        if edit.final and edit.job not in self._waiting:
            self._started.pop(edit.job, None)

    def failed(self, edit: Edit[T], now: float, after: float = 0.0) -> None:
        """The request ended badly: it waits again for `after` seconds, unless something newer has come."""
        newer = self._waiting.get(edit.job)
        stale = not edit.final and edit.job in self._ended
        if not stale and (newer is None or (edit.final and not newer.final)):
            self._wait(edit)
        self._not_before[edit.job] = now + after
        self._spend(edit.bucket, now)

    def hold(self, bucket: str, until: float) -> None:
        """Discord said so: nothing in this bucket before `until`."""
        known = self._bucket(bucket)
        known.until = max(known.until, until)

    def learn(self, bucket: str, limit: int, remaining: int, resets: float) -> None:
        """What the answer's headers say of the bucket: its size, what is left, and when it is full again."""
        self._bucket(bucket).limit = max(1, limit)
        self._next = -math.inf
        if remaining <= 0:
            self.hold(bucket, resets)

    def drop(self, job: str) -> None:
        """Nothing of this job is to be sent any more."""
        self._end(job)
        self._leave_line(job)
        self._started.pop(job, None)
        self._not_before.pop(job, None)

    def wake(self, now: float) -> float:
        """When `take` may next have something, as far as is known now; infinity when only an event can change that.

        Asked after `take` gave None it costs nothing.
        """
        if self._next > now:
            return self._next
        return min((self._ready_at(edit, now) for edit in self._waiting.values()), default=math.inf)

    def interval(self, bucket: str) -> float:
        """Seconds between two previews of one job in this bucket."""
        everywhere = len(self._where) / self.pace.previews_a_second
        return max(self.pace.preview, self._bucket(bucket).interval(), everywhere)

    def _turn(self, edit: Edit[T]) -> tuple[bool, float]:
        """Finals first, the longest waiting of them first; then whoever was served longest ago."""
        return not edit.final, edit.since if edit.final else self._started.get(edit.job, -math.inf)

    def _ready_at(self, edit: Edit[T], now: float) -> float:
        bucket = self._bucket(edit.bucket)
        at = bucket.free_at(edit.final, max(now, self._not_before.get(edit.job, now), self._overall(edit.final)))
        return at if edit.final or math.isinf(at) else bucket.clear_at(max(at, self._rested(edit)))

    def _rested(self, edit: Edit[T]) -> float:
        """When the job's last edit is long enough ago."""
        last = self._started.get(edit.job)
        if last is None:
            return -math.inf
        return last + (self.pace.place if edit.kind == "place" else self.interval(edit.bucket))

    def _overall(self, final: bool) -> float:
        allowed = self.pace.finals_a_second if final else self.pace.previews_a_second
        return self._recent[-allowed] + 1.0 if len(self._recent) >= allowed else -math.inf

    def _wait(self, edit: Edit[T]) -> None:
        self._leave_line(edit.job)
        self._waiting[edit.job] = edit
        self._bucket(edit.bucket).waiting.add(edit.job)

    def _leave_line(self, job: str) -> None:
        if edit := self._waiting.pop(job, None):
            self._bucket(edit.bucket).waiting.discard(job)

    def _spend(self, name: str, now: float) -> None:
        """A request ended: whoever waits for this bucket may come earlier than was thought."""
        bucket = self._bucket(name)
        bucket.spend(now)
        ready = (self._ready_at(self._waiting[job], now) for job in bucket.waiting)
        self._next = min(self._next, *ready, math.inf)
        if len(self._buckets) > SWEPT:
            for idle in [each for each, known in self._buckets.items() if known.idle(now)]:
                del self._buckets[idle]

    def _bucket(self, name: str) -> Bucket:
        return self._buckets.get(name) or self._buckets.setdefault(name, Bucket(self.pace, self.pace.limit))

    def _move(self, job: str, bucket: str, due: float) -> None:
        if self._where.get(job, bucket) != bucket:
            self._stop_rendering(job)
        self._where[job] = bucket
        rendering = self._bucket(bucket).rendering
        rendering[job] = due
        if len(rendering) > 1:  # the others there may no longer have to make way
            self._next = -math.inf

    def _stop_rendering(self, job: str) -> None:
        """The others' intervals shrink."""
        if (bucket := self._where.pop(job, None)) is not None:
            self._bucket(bucket).rendering.pop(job, None)
            self._next = -math.inf

    def _end(self, job: str) -> None:
        self._stop_rendering(job)
        self._ended[job] = None
        self._ended.move_to_end(job)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
