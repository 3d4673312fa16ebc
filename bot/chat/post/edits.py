"""The edit policy: decides which message is edited now, for all jobs.

Pure: the clock is an argument, the content is opaque. It keeps the newest content of each job, sends finals before
previews, never has two requests running in one bucket, and never spends more than a bucket's budget. The more jobs
render, and the busier the machine, the longer the interval between two previews of one: they take turns, in their
bucket and over all. It knows nothing of Discord, messages or pictures.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from bot.chat.post.buckets import Bucket, Pace, Together
from bot.chat.post.line import Line

Kind = Literal["place", "preview", "final"]
T = TypeVar("T")

REMEMBERED = 4096  # ended jobs whose late frames are ignored
SWEPT = 256  # buckets, before the idle ones are dropped: each interaction adds one


@dataclass(frozen=True)
class Edit(Generic[T]):
    """Content that waits since `since`, or is being sent."""

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
        self._requests = Together(self.pace.requests_a_second)
        self._previews = Together(self.pace.previews_a_second)
        self._line = Line()  # of buckets
        self._making: set[str] = set()  # jobs whose preview is being rendered
        self._dirty: set[str] = set()  # buckets whose position in the line may be stale
        self._sweep_at = SWEPT

    def offer(self, edit: Edit[T], due: float = math.inf) -> bool:
        """Keep `edit` as the job's newest content; return False if the job has ended and this is no final.

        `due` is when the job's final is expected, on the same clock as `since`.
        """
        if edit.final:
            self._end(edit.job)
            if (waits := self._waiting.get(edit.job)) and not waits.final:
                self._not_before.pop(edit.job, None)
        elif edit.job in self._ended:
            return False
        elif edit.kind == "preview":
            self._move(edit.job, edit.bucket, due)
        known = self._waiting.get(edit.job)
        same = known is not None and known.kind == edit.kind
        self._wait(replace(edit, since=known.since) if known and same else edit)
        return True

    def take(self, now: float) -> Edit[T] | None:
        """Return what to send now, or None.

        The bucket is busy until `sent` or `failed` is called with the same edit.
        """
        self._settle(now)
        for final in (True, False):
            while self._may(final) and self._overall(final) <= now and (name := self._line.head(final)) is not None:
                edit, _ = self._best(name, now)
                if edit is not None and edit.final == final:
                    return self._begin(edit, now)
                self._place(name, now)
        return None

    def made(self, edit: Edit[T]) -> None:
        """Note that a preview was rendered, so that the next one may be."""
        self._making.discard(edit.job)

    def sent(self, edit: Edit[T], now: float) -> None:
        """Note that the request succeeded."""
        self._ended_one(edit, now)
        self._spend(edit.bucket, now)
        if edit.final and edit.job not in self._waiting:
            self._started.pop(edit.job, None)

    def failed(self, edit: Edit[T], now: float, after: float = 0.0) -> None:
        """Note that the request failed: it waits again for `after` seconds, unless something newer has come."""
        self._ended_one(edit, now)
        newer = self._waiting.get(edit.job)
        stale = not edit.final and edit.job in self._ended
        if not stale and (newer is None or (edit.final and not newer.final)):
            self._wait(edit)
        if not stale:
            self._not_before[edit.job] = now + after
        self._spend(edit.bucket, now)

    def hold(self, bucket: str, until: float) -> None:
        """Send nothing in this bucket before `until`, as Discord demands."""
        self._bucket(bucket).until = max(self._bucket(bucket).until, until)

    def learn(self, bucket: str, limit: int, remaining: int, resets: float) -> None:
        """Adopt what response headers say of the bucket: its size, what is left, and when it is full again."""
        self._bucket(bucket).limit = max(1, limit)
        self._dirty.add(bucket)
        if remaining <= 0:
            self.hold(bucket, resets)

    def drop(self, job: str) -> None:
        """Discard all that this job has to send."""
        self._end(job)
        self._leave(job)
        self._started.pop(job, None)
        self._not_before.pop(job, None)

    def wake(self, now: float) -> float:
        """Return when `take` may have something, as far as is known; infinity if only an event can change that."""
        self._settle(now)
        ready = [final for final in (True, False) if self._may(final) and self._line.head(final) is not None]
        return min([self._line.wakes(), *(max(now, self._overall(final)) for final in ready)])

    def interval(self, bucket: str) -> float:
        """Return the seconds between two previews of one job in this bucket, if nothing else limits them."""
        return max(self.pace.preview, self._bucket(bucket).interval())

    def _begin(self, edit: Edit[T], now: float) -> Edit[T]:
        self._leave(edit.job)
        self._bucket(edit.bucket).busy = True
        self._started[edit.job] = now
        self._not_before.pop(edit.job, None)
        self._requests.begin()
        if not edit.final:
            self._previews.begin()
        if edit.kind == "preview":
            self._making.add(edit.job)
        return edit

    def _may(self, final: bool) -> bool:
        """Return whether a request may start.

        While one preview is rendered no other is, so a busy machine shows fewer, and finals keep the processor.
        """
        return final or len(self._making) < self.pace.made_at_once

    def _settle(self, now: float) -> None:
        """Update the line for every bucket that changed, or whose time has come."""
        for name in [*self._dirty, *self._line.woken(now)]:
            self._place(name, now)
        self._dirty.clear()

    def _place(self, name: str, now: float) -> None:
        edit, at = self._best(name, now)
        if edit is not None:
            self._line.stand(name, edit.final, self._rank(edit))
        elif math.isfinite(at):
            self._line.sleep(name, at)
        else:
            self._line.leave(name)

    def _best(self, name: str, now: float) -> tuple[Edit[T] | None, float]:
        """Return the bucket's next edit if it may go now, and the earliest time at which there may be one."""
        bucket = self._buckets.get(name)
        if bucket is None or not bucket.waiting:
            return None, math.inf
        at = bucket.free_at(True, now)
        if at > now:
            return None, at
        times = {job: self._ready_at(self._waiting[job], bucket, now) for job in bucket.waiting}
        ready = [self._waiting[job] for job, time in times.items() if time <= now]
        best = min(ready, key=lambda edit: (not edit.final, self._rank(edit)), default=None)
        if best is None or best.final:
            return best, min(times.values())
        at = bucket.clear_at(now)
        return (best if at <= now else None), min([at, *(time for time in times.values() if time > now)])

    def _rank(self, edit: Edit[T]) -> float:
        """Return the order: the longest-waiting final first; of previews, the longest since its last edit.

        A job's first preview has a head start.
        """
        return edit.since if edit.final else self._started.get(edit.job, edit.since - self.pace.newcomer)

    def _ready_at(self, edit: Edit[T], bucket: Bucket, now: float) -> float:
        at = bucket.free_at(edit.final, max(now, self._not_before.get(edit.job, now)))
        return at if edit.final else max(at, self._rested(edit))

    def _rested(self, edit: Edit[T]) -> float:
        """Return when the job's last edit is long enough ago."""
        last = self._started.get(edit.job, -math.inf)
        return last + (self.pace.place if edit.kind == "place" else self.interval(edit.bucket))

    def _overall(self, final: bool) -> float:
        """Return when one more request is within the limits of all buckets together."""
        return self._requests.free_at() if final else max(self._requests.free_at(), self._previews.free_at())

    def _ended_one(self, edit: Edit[T], now: float) -> None:
        self.made(edit)
        self._requests.end(now)
        if not edit.final:
            self._previews.end(now)

    def _wait(self, edit: Edit[T]) -> None:
        self._leave(edit.job)
        self._waiting[edit.job] = edit
        self._bucket(edit.bucket).waiting.add(edit.job)
        self._dirty.add(edit.bucket)

    def _leave(self, job: str) -> None:
        if edit := self._waiting.pop(job, None):
            self._bucket(edit.bucket).waiting.discard(job)
            self._dirty.add(edit.bucket)

    def _spend(self, name: str, now: float) -> None:
        """Count a request that ended, so that the bucket's next one may come."""
        self._bucket(name).spend(now)
        self._dirty.add(name)
        if len(self._buckets) > self._sweep_at:
            for idle in [each for each, known in self._buckets.items() if known.idle(now)]:
                del self._buckets[idle]
            self._sweep_at = max(SWEPT, 2 * len(self._buckets))

    def _bucket(self, name: str) -> Bucket:
        return self._buckets.get(name) or self._buckets.setdefault(name, Bucket(self.pace, self.pace.limit))

    def _move(self, job: str, bucket: str, due: float) -> None:
        if self._where.get(job, bucket) != bucket:
            self._stop_rendering(job)
        self._where[job] = bucket
        self._bucket(bucket).rendering[job] = due
        self._dirty.add(bucket)

    def _stop_rendering(self, job: str) -> None:
        """Remove the job from its bucket: the others' intervals shrink."""
        if (bucket := self._where.pop(job, None)) is not None:
            self._bucket(bucket).rendering.pop(job, None)
            self._dirty.add(bucket)

    def _end(self, job: str) -> None:
        self._stop_rendering(job)
        self._ended[job] = None
        self._ended.move_to_end(job)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
