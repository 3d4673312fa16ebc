"""In-process fan-out of job events: places in the queue, model loading, previews, ends.

Publishing never blocks. A slow subscriber loses old values, but never the newest one and never an end: values coalesce
per job (frames per image), and an end replaces all earlier events of its job. A subscriber reads ends first, then
previews, then places and model loading.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from bot.states import State

PREVIEWS_IN_ROW = 8
REMEMBERED = 4096  # ended jobs whose late events are dropped


@dataclass(frozen=True)
class Queued:
    """A waiting job's place: `place` jobs start before it; `eta`: seconds until it is done, None if unknown.

    `starting`: a sentence about a worker that is starting up, while no worker can run the job.
    """

    job: str
    place: int
    eta: float | None
    starting: str = ""


@dataclass(frozen=True)
class Readying:
    """A job whose worker loads `model` into memory. `done`: the loaded share, from 0 to 1.

    `size`: bytes of the model in memory; 0: unknown.
    """

    job: str
    model: str
    done: float
    size: int = 0


@dataclass(frozen=True)
class Developing:
    """A running job at `step` of `of`. `frames`: image index → newest JPEG that this subscriber has not read."""

    job: str
    step: int
    of: int
    seconds_left: float
    frames: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """The end of a job, published after it was stored. `reason`: a sentence for the member, or empty."""

    job: str
    state: State
    reason: str


Moment = Queued | Readying | Developing | Settled


def merge(old: Moment | None, new: Moment) -> Moment:
    """Combine an unread event with a newer one of the same job."""
    if isinstance(old, Developing) and isinstance(new, Developing):
        return replace(new, step=max(old.step, new.step), frames=old.frames | new.frames)
    return new


class Subscription:
    """One reader: `async with feed.subscribe() as moments: async for moment in moments`. Ends when the feed closes."""

    def __init__(self, feed: Feed, job: str | None, previews: bool) -> None:
        self.job = job
        self.previews = previews
        self._feed = feed
        self._places: dict[str, Moment] = {}
        self._live: dict[str, Moment] = {}
        self._in_row = 0  # previews read since the last place
        self._ended: dict[str, Settled] = {}
        self._woken = asyncio.Event()
        self._closed = False

    def offer(self, moment: Moment) -> None:
        """Queue an event if the subscription wants it; it replaces unread events of the same job."""
        if self._closed or (self.job is not None and self.job != moment.job):
            return
        if isinstance(moment, Settled):
            self._live.pop(moment.job, None)
            self._places.pop(moment.job, None)
            self._ended[moment.job] = moment
        elif isinstance(moment, Developing):
            self._places.pop(moment.job, None)
            self._live[moment.job] = merge(self._live.get(moment.job), moment)
        else:
            self._live.pop(moment.job, None)
            self._places[moment.job] = moment
        self._woken.set()

    def close(self) -> None:
        """End the iteration after the pending events; idempotent."""
        self._closed = True
        self._woken.set()
        self._feed.leave(self)

    def __aiter__(self) -> AsyncIterator[Moment]:
        return self

    async def __anext__(self) -> Moment:
        while not (self._ended or self._live or self._places):
            if self._closed:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        if self._ended:
            return self._ended.pop(next(iter(self._ended)))
        source = self._next_source()
        return source.pop(next(iter(source)))

    def _next_source(self) -> dict[str, Moment]:
        """Alternate: a thousand places do not delay a preview, and many previews do not delay a place for ever."""
        places = not self._live or (self._in_row >= PREVIEWS_IN_ROW and bool(self._places))
        self._in_row = 0 if places else self._in_row + 1
        return self._places if places else self._live

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
        self._newest: dict[str, Moment] = {}  # of jobs that have not ended
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._watching: Counter[str] = Counter()
        self._joined: set[str] | None = set()  # jobs that gained a viewer; None: perhaps any
        self.joined = asyncio.Event()  # set when a viewer joins; `take_joined` clears it

    def publish(self, moment: Moment) -> None:
        """Give an event to all subscribers; keep it for later subscribers until the job ends.

        Drops events that a slow thread publishes after the job's end. The start of a job arrives by another way and may
        come after the first event of its model loading; then the loading event counts as the newer one.
        """
        if isinstance(moment, Settled):
            self._newest.pop(moment.job, None)
            self._end(moment.job)
        elif moment.job in self._ended or self._outdated(moment):
            return
        else:
            self._newest[moment.job] = merge(self._newest.get(moment.job), moment)
        for subscription in self._listeners(moment.job):
            subscription.offer(moment)

    def _outdated(self, moment: Moment) -> bool:
        begun = isinstance(moment, Developing) and not moment.frames
        return begun and isinstance(self._newest.get(moment.job), Readying)

    def _end(self, job: str) -> None:
        self._ended[job] = None
        self._ended.move_to_end(job)
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _listeners(self, job: str) -> list[Subscription]:
        return [*self._subscriptions.get(None, ()), *self._subscriptions.get(job, ())]

    def subscribe(self, job: str | None = None, *, previews: bool = True) -> Subscription:
        """Subscribe to one job or to all. Begins with the newest event of each job that has not ended.

        A job that has ended yields nothing: subscribe first, then read its view. With `previews` False the subscription
        does not ask the workers for live frames.
        """
        subscription = Subscription(self, job, previews)
        self._subscriptions.setdefault(job, set()).add(subscription)
        for moment in self._newest.values() if job is None else filter(None, [self._newest.get(job)]):
            subscription.offer(moment)
        if previews:
            self._note_joined(job)
        return subscription

    def watch(self, job: str) -> None:
        """Ask for a job's live frames without a subscription, until `unwatch`."""
        self._watching[job] += 1
        self._note_joined(job)

    def unwatch(self, job: str) -> None:
        """Undo one `watch`."""
        self._watching[job] -= 1
        if self._watching[job] <= 0:
            del self._watching[job]

    def _note_joined(self, job: str | None) -> None:
        if job is None:
            self._joined = None
        elif self._joined is not None:
            self._joined.add(job)
        self.joined.set()

    def take_joined(self) -> set[str] | None:
        """Return and reset the jobs that gained a viewer since the last call; None: it may be any job."""
        joined, self._joined = self._joined, set()
        self.joined.clear()
        return joined

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscription; idempotent."""
        listeners = self._subscriptions.get(subscription.job, set())
        listeners.discard(subscription)
        if not listeners:
            self._subscriptions.pop(subscription.job, None)

    @property
    def heard(self) -> bool:
        """True while there is a subscription."""
        return bool(self._subscriptions)

    def watched(self, job: str) -> bool:
        """Return whether somebody wants this job's live frames."""
        return job in self._watching or any(one.previews for one in self._listeners(job))

    def close(self) -> None:
        """End every subscription (at shutdown)."""
        for subscription in [one for listeners in self._subscriptions.values() for one in listeners]:
            subscription.close()
