"""In-process fan-out of job events: places in the queue, model loading, previews, changes while it runs, ends.

Publishing never blocks. A slow subscriber loses old values, but never the newest one and never an end: values coalesce
per job (frames per image, steering per change), and an end replaces all earlier events of its job. A subscriber reads
ends first, then changes, then previews (that which shows a change before others), then places and model loading.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from cachetools import LRUCache

from bot.domain.job_states import JobState
from bot.domain.steering import AmendmentView
from engine.contract import Recipe

MAX_PROGRESS_RUN = 8
MAX_ENDED_JOBS = 4096  # ended jobs whose late events are dropped


@dataclass(frozen=True)
class QueueMoved:
    """A waiting job's place: `jobs_ahead` jobs start before it; `eta`: seconds until it is done, None if unknown.

    `startup_notice`: a sentence about a worker that is starting up, while no worker can run the job.
    """

    job: str
    jobs_ahead: int
    eta: float | None
    startup_notice: str = ""


@dataclass(frozen=True)
class ModelLoading:
    """A job whose worker loads `model` into memory. `loaded_share`: the loaded share, from 0 to 1.

    `model_bytes`: bytes of the model in memory; 0: unknown.
    """

    job: str
    model: str
    loaded_share: float
    model_bytes: int = 0


@dataclass(frozen=True)
class JobProgress:
    """A running job at `step` of `total_steps`. `frames`: image index → newest JPEG that the subscriber has not
    read.
    """

    job: str
    step: int
    total_steps: int
    seconds_left: float
    frames: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class JobSteered:
    """A change of a job that was asked for, made or refused. `recipe`: the job's, with all changes that are made.

    It is not repeated to later subscribers, who read the changes themselves.
    """

    job: str
    view: AmendmentView
    recipe: Recipe


@dataclass(frozen=True)
class JobEnded:
    """The end of a job, published after it was stored. `reason`: a sentence for the member, or empty."""

    job: str
    state: JobState
    reason: str


JobEvent = QueueMoved | ModelLoading | JobProgress | JobSteered | JobEnded


def merge_events(old: JobEvent | None, new: JobEvent) -> JobEvent:
    """Combine an unread event with a newer one of the same job."""
    if isinstance(old, JobProgress) and isinstance(new, JobProgress):
        return replace(new, step=max(old.step, new.step), frames=old.frames | new.frames)
    return new


class Subscription:
    """One reader: `async with feed.subscribe() as events: async for event in events`. Ends when the feed closes."""

    def __init__(self, feed: Feed, job: str | None, with_previews: bool) -> None:
        self.job = job
        self.with_previews = with_previews
        self._feed = feed
        self._queue_events: dict[str, JobEvent] = {}
        self._progress_events: dict[str, JobEvent] = {}
        self._progress_run = 0  # previews read since the last queue place
        self._steered_events: dict[str, dict[int, JobSteered]] = {}  # by job and number
        self._unshown_changes: dict[str, int] = {}  # by job: the step of its newest change that no preview shows yet
        self._end_events: dict[str, JobEnded] = {}
        self._wakeup = asyncio.Event()
        self._has_urgent_event = asyncio.Event()
        self._is_closed = False

    def put_event(self, event: JobEvent) -> None:
        """Queue an event if the subscription wants it; it replaces unread events of the same job."""
        if self._is_closed or (self.job is not None and self.job != event.job):
            return
        if isinstance(event, JobEnded):
            self._progress_events.pop(event.job, None)
            self._queue_events.pop(event.job, None)
            self._steered_events.pop(event.job, None)
            self._unshown_changes.pop(event.job, None)
            self._end_events[event.job] = event
            self._has_urgent_event.set()
        elif isinstance(event, JobSteered):
            self._steered_events.setdefault(event.job, {})[event.view.number] = event
            self._has_urgent_event.set()
            if event.view.step is not None:
                self._unshown_changes[event.job] = event.view.step
                self._hurry_change(event.job)
        elif isinstance(event, JobProgress):
            self._queue_events.pop(event.job, None)
            self._progress_events[event.job] = merge_events(self._progress_events.get(event.job), event)
            self._hurry_change(event.job)
        else:
            self._progress_events.pop(event.job, None)
            self._queue_events[event.job] = event
        self._wakeup.set()

    def _hurry_change(self, job: str) -> None:
        """Put the first unread preview that shows a change of its job before those of others."""
        event = self._progress_events.get(job)
        if isinstance(event, JobProgress) and event.frames and event.step > self._unshown_changes.get(job, event.step):
            del self._unshown_changes[job]
            self._progress_events = {job: event, **self._progress_events}
            self._has_urgent_event.set()

    async def rest(self, seconds: float) -> None:
        """Give the reader a pace, until an end, a change or the first preview that shows one comes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_urgent_event.wait()

    def close(self) -> None:
        """End the iteration after the pending events; idempotent."""
        self._is_closed = True
        self._wakeup.set()
        self._feed.unsubscribe(self)

    def __aiter__(self) -> AsyncIterator[JobEvent]:
        return self

    async def __anext__(self) -> JobEvent:
        while not (self._end_events or self._steered_events or self._progress_events or self._queue_events):
            if self._is_closed:
                raise StopAsyncIteration
            self._wakeup.clear()
            await self._wakeup.wait()
        self._has_urgent_event.clear()
        if self._end_events:
            return self._end_events.pop(next(iter(self._end_events)))
        if self._steered_events:
            return self._pop_steered()
        source = self._choose_source()
        return source.pop(next(iter(source)))

    def _pop_steered(self) -> JobSteered:
        job, by_number = next(iter(self._steered_events.items()))
        event = by_number.pop(next(iter(by_number)))
        if not by_number:
            del self._steered_events[job]
        return event

    def _choose_source(self) -> dict[str, JobEvent]:
        """Alternate: a thousand places delay no preview, and many previews do not delay a place for ever."""
        take_queue_event = not self._progress_events or (
            self._progress_run >= MAX_PROGRESS_RUN and bool(self._queue_events)
        )
        self._progress_run = 0 if take_queue_event else self._progress_run + 1
        return self._queue_events if take_queue_event else self._progress_events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Feed:
    """Publishes job events to subscribers. Call it on the event loop's thread; no method waits."""

    def __init__(self) -> None:
        self._subscriptions: dict[str | None, set[Subscription]] = {}  # by job; None: all jobs
        self._latest_events: dict[str, JobEvent] = {}  # of jobs that have not ended
        self._ended_jobs: LRUCache[str, None] = LRUCache(MAX_ENDED_JOBS)
        self._watch_counts: Counter[str] = Counter()
        self._joined_jobs: set[str] | None = set()  # jobs that gained a viewer; None: perhaps any
        self.viewer_joined = asyncio.Event()  # set when a viewer joins; `take_joined_jobs` clears it

    def publish(self, event: JobEvent) -> None:
        """Give an event to all subscribers; keep it for later subscribers until the job ends.

        Drops events that a slow thread publishes after the job's end. The start of a job takes another way and may
        arrive after the first event of its model loading; then the loading event counts as the newer one.
        """
        if isinstance(event, JobEnded):
            self._latest_events.pop(event.job, None)
            self._ended_jobs[event.job] = None
        elif event.job in self._ended_jobs or self._is_outdated(event):
            return
        elif not isinstance(event, JobSteered):  # a later subscriber needs the newest progress, not a change
            self._latest_events[event.job] = merge_events(self._latest_events.get(event.job), event)
        for subscription in self._listeners(event.job):
            subscription.put_event(event)

    def _is_outdated(self, event: JobEvent) -> bool:
        is_start = isinstance(event, JobProgress) and not event.frames
        return is_start and isinstance(self._latest_events.get(event.job), ModelLoading)

    def _listeners(self, job: str) -> list[Subscription]:
        return [*self._subscriptions.get(None, ()), *self._subscriptions.get(job, ())]

    def subscribe(self, job: str | None = None, *, with_previews: bool = True) -> Subscription:
        """Subscribe to one job or to all. Begins with the newest event of each job that has not ended.

        A job that has ended yields nothing: subscribe first, then read its view. With `with_previews` False the
        subscription does not ask the workers for live frames.
        """
        subscription = Subscription(self, job, with_previews)
        self._subscriptions.setdefault(job, set()).add(subscription)
        for event in self._latest_events.values() if job is None else filter(None, [self._latest_events.get(job)]):
            subscription.put_event(event)
        if with_previews:
            self._note_viewer(job)
        return subscription

    def find_latest(self, job: str) -> JobEvent | None:
        """Return the newest event of a job that has not ended, with the newest frame of each image; None if unknown."""
        return self._latest_events.get(job)

    def watch(self, job: str) -> None:
        """Ask for a job's live frames without a subscription, until `unwatch`."""
        self._watch_counts[job] += 1
        self._note_viewer(job)

    def unwatch(self, job: str) -> None:
        """Undo one `watch`."""
        self._watch_counts[job] -= 1
        if self._watch_counts[job] <= 0:
            del self._watch_counts[job]

    def _note_viewer(self, job: str | None) -> None:
        if job is None:
            self._joined_jobs = None
        elif self._joined_jobs is not None:
            self._joined_jobs.add(job)
        self.viewer_joined.set()

    def take_joined_jobs(self) -> set[str] | None:
        """Return and reset the jobs that gained a viewer since the last call; None: it may be any job."""
        jobs = self._joined_jobs
        self._joined_jobs = set()
        self.viewer_joined.clear()
        return jobs

    def unsubscribe(self, subscription: Subscription) -> None:
        """Remove a subscription; idempotent."""
        listeners = self._subscriptions.get(subscription.job, set())
        listeners.discard(subscription)
        if not listeners:
            self._subscriptions.pop(subscription.job, None)

    @property
    def has_subscribers(self) -> bool:
        """True while there is a subscription."""
        return bool(self._subscriptions)

    def is_watched(self, job: str) -> bool:
        """Return whether somebody wants this job's live frames."""
        return job in self._watch_counts or any(subscription.with_previews for subscription in self._listeners(job))

    def close(self) -> None:
        """End every subscription (at shutdown)."""
        for subscription in [listener for listeners in self._subscriptions.values() for listener in listeners]:
            subscription.close()
