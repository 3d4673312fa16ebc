"""The edit policy: decides which message is edited now, for all jobs.

Pure: the clock is an argument, the content is opaque. It keeps the newest content of each job and sends finals before
previews. A bucket, as Discord counts them (an interaction's token, or a channel), never has two requests running, and
never spends more than its budget. A request counts from the moment it *ended*: so jitter on the way cannot put more
requests into one of Discord's windows than the budget allows. Jobs that render take turns, in their bucket and over
all: the more jobs, and the busier the machine, the longer the interval between two previews of one job. A failed
request waits longer each time. It knows jobs by their ids, and nothing of Discord, messages or pictures.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

from cachetools import LRUCache

EditKind = Literal["place", "preview", "final"]
T = TypeVar("T")

MAX_ENDED_JOBS = 4096  # ended jobs whose late frames are ignored
MIN_BUCKETS_TO_SWEEP = 256  # buckets, before the idle ones are dropped: each interaction adds one


@dataclass(frozen=True)
class Edit(Generic[T]):
    """Content that waits since `waiting_since`, or is being sent."""

    job: str
    bucket: str
    kind: EditKind
    content: T
    waiting_since: float

    @property
    def final(self) -> bool:
        return self.kind == "final"


class EditPolicy(Generic[T]):
    """The newest content of every job and the budget of every bucket."""

    def __init__(self, budget: RateBudget | None = None) -> None:
        self.budget = budget or RateBudget()
        self._waiting_edits: dict[str, Edit[T]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._preview_bucket_by_job: dict[str, str] = {}  # job that shows previews → bucket
        self._last_edit_times: dict[str, float] = {}  # job → when its last edit began
        self._not_before: dict[str, float] = {}
        self._ended_jobs: LRUCache[str, None] = LRUCache(MAX_ENDED_JOBS)
        self._request_limit = GlobalLimit(self.budget.requests_per_second)
        self._preview_limit = GlobalLimit(self.budget.previews_per_second)
        self._ready_queue = ReadyQueue()  # of buckets
        self._rendering_jobs: set[str] = set()  # jobs whose preview is being rendered
        self._dirty_buckets: set[str] = set()  # buckets whose position in the line may be stale
        self._sweep_at = MIN_BUCKETS_TO_SWEEP

    def offer(self, edit: Edit[T], due: float = math.inf) -> bool:
        """Keep `edit` as the job's newest content; return False if the job has ended and this is no final.

        `due` is when the job's final is expected, on the same clock as `waiting_since`.
        """
        if edit.final:
            self._mark_ended(edit.job)
            if (waiting_edit := self._waiting_edits.get(edit.job)) and not waiting_edit.final:
                self._not_before.pop(edit.job, None)
        elif edit.job in self._ended_jobs:
            return False
        elif edit.kind == "preview":
            self._start_previews(edit.job, edit.bucket, due)
        current = self._waiting_edits.get(edit.job)
        is_same_kind = current is not None and current.kind == edit.kind
        self._enqueue(replace(edit, waiting_since=current.waiting_since) if current and is_same_kind else edit)
        return True

    def take_next(self, now: float) -> Edit[T] | None:
        """Return what to send now, or None.

        The bucket is busy until `mark_sent` or `mark_failed` is called with the same edit.
        """
        self._update_positions(now)
        for final in (True, False):
            while (
                self._may_start(final)
                and self._global_free_at(final) <= now
                and (name := self._ready_queue.first_ready(final)) is not None
            ):
                edit, _ = self._next_in_bucket(name, now)
                if edit is not None and edit.final == final:
                    return self._start_request(edit, now)
                self._update_position(name, now)
        return None

    def mark_rendered(self, edit: Edit[T]) -> None:
        """Note that a preview was rendered, so that the next rendering may start."""
        self._rendering_jobs.discard(edit.job)

    def mark_sent(self, edit: Edit[T], now: float) -> None:
        """Note that the request succeeded."""
        self._count_end(edit, now)
        self._record_request(edit.bucket, now)
        if edit.final and edit.job not in self._waiting_edits:
            self._last_edit_times.pop(edit.job, None)

    def mark_failed(self, edit: Edit[T], now: float, delay: float = 0.0) -> None:
        """Note that the request failed: the edit waits again for `delay` seconds, unless there is newer content."""
        self._count_end(edit, now)
        newer_edit = self._waiting_edits.get(edit.job)
        is_stale = not edit.final and edit.job in self._ended_jobs
        if not is_stale and (newer_edit is None or (edit.final and not newer_edit.final)):
            self._enqueue(edit)
        if not is_stale:
            self._not_before[edit.job] = now + delay
        self._record_request(edit.bucket, now)

    def block_bucket(self, bucket: str, until: float) -> None:
        """Send nothing in this bucket before `until`, as Discord demands."""
        self._get_bucket(bucket).blocked_until = max(self._get_bucket(bucket).blocked_until, until)

    def apply_limits(self, bucket: str, limit: int, remaining: int, reset_at: float) -> None:
        """Adopt what response headers say of the bucket: its size, what is left, and when it is full again."""
        self._get_bucket(bucket).limit = max(1, limit)
        self._dirty_buckets.add(bucket)
        if remaining <= 0:
            self.block_bucket(bucket, reset_at)

    def discard(self, job: str) -> None:
        """Discard all that this job has to send."""
        self._mark_ended(job)
        self._dequeue(job)
        self._last_edit_times.pop(job, None)
        self._not_before.pop(job, None)

    def next_wake(self, now: float) -> float:
        """Return when `take_next` may have something, as far as known; infinity if only an event can change that."""
        self._update_positions(now)
        ready_kinds = [
            final
            for final in (True, False)
            if self._may_start(final) and self._ready_queue.first_ready(final) is not None
        ]
        return min([self._ready_queue.next_wake(), *(max(now, self._global_free_at(final)) for final in ready_kinds)])

    def preview_interval(self, bucket: str) -> float:
        """Return the seconds between two previews of one job in this bucket, if nothing else limits them."""
        return max(self.budget.preview_interval, self._get_bucket(bucket).preview_interval())

    def _start_request(self, edit: Edit[T], now: float) -> Edit[T]:
        self._dequeue(edit.job)
        self._get_bucket(edit.bucket).is_busy = True
        self._last_edit_times[edit.job] = now
        self._not_before.pop(edit.job, None)
        self._request_limit.start_request()
        if not edit.final:
            self._preview_limit.start_request()
        if edit.kind == "preview":
            self._rendering_jobs.add(edit.job)
        return edit

    def _may_start(self, final: bool) -> bool:
        """Return whether a request may start.

        While one preview is rendered no other is, so a busy machine shows fewer, and finals keep the processor.
        """
        return final or len(self._rendering_jobs) < self.budget.renders_at_once

    def _update_positions(self, now: float) -> None:
        """Update the position of every bucket that changed, or whose time has come."""
        for name in [*self._dirty_buckets, *self._ready_queue.pop_due(now)]:
            self._update_position(name, now)
        self._dirty_buckets.clear()

    def _update_position(self, name: str, now: float) -> None:
        edit, next_time = self._next_in_bucket(name, now)
        if edit is not None:
            self._ready_queue.make_ready(name, edit.final, self._sort_key(edit))
        elif math.isfinite(next_time):
            self._ready_queue.sleep(name, next_time)
        else:
            self._ready_queue.remove(name)

    def _next_in_bucket(self, name: str, now: float) -> tuple[Edit[T] | None, float]:
        """Return the bucket's next edit if it may go now, and the earliest time at which there may be one."""
        bucket = self._buckets.get(name)
        if bucket is None or not bucket.waiting_jobs:
            return None, math.inf
        next_time = bucket.free_at(True, now)
        if next_time > now:
            return None, next_time
        ready_times = {job: self._ready_at(self._waiting_edits[job], bucket, now) for job in bucket.waiting_jobs}
        ready_edits = [self._waiting_edits[job] for job, ready_at in ready_times.items() if ready_at <= now]
        best_edit = min(ready_edits, key=lambda edit: (not edit.final, self._sort_key(edit)), default=None)
        if best_edit is None or best_edit.final:
            return best_edit, min(ready_times.values())
        next_time = bucket.avoid_finals(now)
        return (best_edit if next_time <= now else None), min(
            [next_time, *(ready_at for ready_at in ready_times.values() if ready_at > now)]
        )

    def _sort_key(self, edit: Edit[T]) -> float:
        """Return the order: the longest-waiting final first; among previews, the job with the oldest last edit.

        A job's first preview gets a head start.
        """
        return (
            edit.waiting_since
            if edit.final
            else self._last_edit_times.get(edit.job, edit.waiting_since - self.budget.first_preview_lead)
        )

    def _ready_at(self, edit: Edit[T], bucket: Bucket, now: float) -> float:
        ready_at = bucket.free_at(edit.final, max(now, self._not_before.get(edit.job, now)))
        return ready_at if edit.final else max(ready_at, self._interval_end(edit))

    def _interval_end(self, edit: Edit[T]) -> float:
        """Return when the job's last edit is long enough ago."""
        last_edit_time = self._last_edit_times.get(edit.job, -math.inf)
        return last_edit_time + (
            self.budget.queue_place_interval if edit.kind == "place" else self.preview_interval(edit.bucket)
        )

    def _global_free_at(self, final: bool) -> float:
        """Return when one more request is within the limits of all buckets together."""
        return (
            self._request_limit.free_at()
            if final
            else max(self._request_limit.free_at(), self._preview_limit.free_at())
        )

    def _count_end(self, edit: Edit[T], now: float) -> None:
        self.mark_rendered(edit)
        self._request_limit.end_request(now)
        if not edit.final:
            self._preview_limit.end_request(now)

    def _enqueue(self, edit: Edit[T]) -> None:
        self._dequeue(edit.job)
        self._waiting_edits[edit.job] = edit
        self._get_bucket(edit.bucket).waiting_jobs.add(edit.job)
        self._dirty_buckets.add(edit.bucket)

    def _dequeue(self, job: str) -> None:
        if edit := self._waiting_edits.pop(job, None):
            self._get_bucket(edit.bucket).waiting_jobs.discard(job)
            self._dirty_buckets.add(edit.bucket)

    def _record_request(self, name: str, now: float) -> None:
        """Count a request that ended, so that the bucket's next one may come."""
        self._get_bucket(name).record_request(now)
        self._dirty_buckets.add(name)
        if len(self._buckets) > self._sweep_at:
            for idle_name in [bucket_name for bucket_name, bucket in self._buckets.items() if bucket.is_idle(now)]:
                del self._buckets[idle_name]
            self._sweep_at = max(MIN_BUCKETS_TO_SWEEP, 2 * len(self._buckets))

    def _get_bucket(self, name: str) -> Bucket:
        return self._buckets.get(name) or self._buckets.setdefault(name, Bucket(self.budget, self.budget.limit))

    def _start_previews(self, job: str, bucket: str, due: float) -> None:
        if self._preview_bucket_by_job.get(job, bucket) != bucket:
            self._stop_previews(job)
        self._preview_bucket_by_job[job] = bucket
        self._get_bucket(bucket).final_due_times[job] = due
        self._dirty_buckets.add(bucket)

    def _stop_previews(self, job: str) -> None:
        """Remove the job from its bucket: the others' intervals shrink."""
        if (bucket := self._preview_bucket_by_job.pop(job, None)) is not None:
            self._get_bucket(bucket).final_due_times.pop(job, None)
            self._dirty_buckets.add(bucket)

    def _mark_ended(self, job: str) -> None:
        self._stop_previews(job)
        self._ended_jobs[job] = None


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


HeapEntry = tuple[float, int, str]  # time or rank, number of the move, name


class ReadyQueue:
    """Stale entries stay in their heap until they reach the top: only the last move of a name counts."""

    def __init__(self) -> None:
        self._sleeping: list[HeapEntry] = []
        self._ready_by_urgency: dict[bool, list[HeapEntry]] = {True: [], False: []}
        self._last_moves: dict[str, int] = {}
        self._move_numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._last_moves)

    def sleep(self, name: str, until: float) -> None:
        """Let the name sleep until that moment."""
        self._push(self._sleeping, name, until)

    def make_ready(self, name: str, is_urgent: bool, rank: float) -> None:
        """Make the name ready in the `is_urgent` line or the other; a lower rank goes first."""
        self._push(self._ready_by_urgency[is_urgent], name, rank)

    def remove(self, name: str) -> None:
        """Remove the name: only an event brings it back."""
        self._last_moves.pop(name, None)

    def pop_due(self, now: float) -> Iterator[str]:
        """Remove and yield the names whose moment has come."""
        while self._first_valid(self._sleeping) and self._sleeping[0][0] <= now:
            name = heapq.heappop(self._sleeping)[2]
            self.remove(name)
            yield name

    def first_ready(self, is_urgent: bool) -> str | None:
        """Return the name of the lowest rank in a line."""
        return self._first_valid(self._ready_by_urgency[is_urgent])

    def next_wake(self) -> float:
        """Return when the first sleeper wakes; infinity for none."""
        return self._sleeping[0][0] if self._first_valid(self._sleeping) else math.inf

    def _push(self, heap: list[HeapEntry], name: str, key: float) -> None:
        number = self._last_moves[name] = next(self._move_numbers)
        heapq.heappush(heap, (key, number, name))

    def _first_valid(self, heap: list[HeapEntry]) -> str | None:
        while heap and self._last_moves.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None


# seconds until the next attempt in an outage
FIRST_PAUSE = 2.0
MAX_PAUSE = 60.0
# seconds until a job that was given up is tried again
FIRST_JOB_PAUSE = 600.0
MAX_JOB_PAUSE = 86_400.0


def backoff_pause(seconds: float, failures: int) -> float:
    """Return the pause after `failures` failures in a row, at least `seconds`."""
    return max(seconds, min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))) if failures else seconds


class JobBackoff:
    """Jobs whose delivery was given up, and when each is tried again; the pause doubles each time."""

    def __init__(self) -> None:
        self._next_attempts: dict[str, tuple[float, float]] = {}  # time of the next attempt, and the pause before it

    def __len__(self) -> int:
        return len(self._next_attempts)

    def add(self, job: str, now: float) -> None:
        """Give the job up, for twice as long as the last time."""
        pause = min(MAX_JOB_PAUSE, 2 * self._next_attempts[job][1]) if job in self._next_attempts else FIRST_JOB_PAUSE
        self._next_attempts[job] = (now + pause, pause)

    def is_waiting(self, job: str, now: float) -> bool:
        """Return whether the job must still wait for its next attempt."""
        return job in self._next_attempts and now < self._next_attempts[job][0]

    def retain_only(self, jobs: Iterable[str]) -> None:
        """Forget all other jobs: they are settled."""
        self._next_attempts = {job: self._next_attempts[job] for job in jobs if job in self._next_attempts}
