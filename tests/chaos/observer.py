"""Observes every frame, result and dispatch on the broker, with a connection of its own that no plug cuts.

Knows subjects and the wire contract. Reports how long a job paused when its worker was lost, and how far it fell back.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from chaos.evidence import Setback
from engine.bus import BrokerUnreachable, Bus
from engine.contract import (
    Frame,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    MalformedMessage,
    Result,
    decode,
)

MAX_REPEATABLE = 400  # payloads that can be repeated
WANT_SECONDS = 4.0
TAKEOVER_SECONDS = 20.0  # seconds that another worker may need to take over


@dataclass
class Claimed:
    """What was observed of one epoch of a job. `steps`: image → when each step was first seen."""

    epoch: int
    worker: str
    step: int
    began: float
    steps: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    over: bool = False

    def reached(self, step: int) -> float:
        """When all images were known to have reached a step."""
        times = [
            next((at for at, k in sightings if k >= step), sightings[-1][0])
            for sightings in self.steps.values()
            if sightings
        ]
        return max(times, default=self.began) if step > self.step else self.began


@dataclass(frozen=True)
class Loss:
    """A lost worker, and the jobs that it held."""

    at: float
    worker: str
    how: str
    jobs: tuple[tuple[str, int], ...]


class Observer:
    """Starts with `open`. Times are on the monotonic clock."""

    def __init__(self, bus: Bus, open_jobs: Callable[[], Iterable[str]]) -> None:
        self._bus, self._open_jobs = bus, open_jobs
        self.jobs: dict[str, dict[int, Claimed]] = defaultdict(dict)
        self.losses: list[Loss] = []
        self.troubled: list[tuple[float, float, str]] = []  # from, until, what: other plugs
        self.heard: deque[tuple[str, bytes]] = deque(maxlen=MAX_REPEATABLE)

    async def open(self) -> None:
        for subject in ("frames.*", "results.>", "work.>"):
            await self._bus.client.subscribe(subject, cb=self._hear)

    async def want(self) -> None:
        """Asks for frames of every open job, for ever."""
        while True:
            with suppress(BrokerUnreachable):
                for job in list(self._open_jobs()):
                    await self._bus.request_previews(job)
            await asyncio.sleep(WANT_SECONDS)

    async def _hear(self, msg: Msg) -> None:
        now = time.monotonic()
        if not msg.subject.startswith("frames."):
            self.heard.append((msg.subject, msg.data))
            if msg.subject.startswith("results.") and ".liar." not in msg.subject:
                with suppress(MalformedMessage):
                    self._note_result(decode(msg.data, Result), now)  # pyright: ignore[reportArgumentType]
            return
        with suppress(MalformedMessage):
            frame = decode(msg.data, Frame)
            if claimed := self.jobs[frame.job].get(frame.epoch):
                progress = claimed.steps[frame.image]
                if not progress or progress[-1][1] < frame.step:
                    progress.append((now, frame.step))

    def _note_result(self, result: Result, now: float) -> None:
        known = self.jobs[result.job]
        if isinstance(result, JobStarted) and result.epoch not in known:
            known[result.epoch] = Claimed(result.epoch, result.worker, result.step, now)
        elif isinstance(result, JobFinished | JobFailed | JobCancelled) and result.epoch in known:
            known[result.epoch].over = True

    def held(self, worker: str | None = None) -> list[tuple[str, Claimed]]:
        """The running jobs, of one worker or of all."""
        latest = [(job, known[max(known)]) for job, known in self.jobs.items() if known]
        return [(job, one) for job, one in latest if not one.over and worker in (None, one.worker)]

    def lose(self, worker: str, how: str) -> None:
        """Records that a worker is lost at this moment."""
        jobs = tuple((job, one.epoch) for job, one in self.held(worker))
        self.losses.append(Loss(time.monotonic(), worker, how, jobs))

    def setbacks(self) -> list[Setback]:
        """The outcome of every job that lost its worker while it ran."""
        return [self._find_setback(loss, job, epoch) for loss in self.losses for job, epoch in loss.jobs]

    def _find_setback(self, loss: Loss, job: str, epoch: int) -> Setback:
        before = self.jobs[job][epoch]
        later = [one for number, one in self.jobs[job].items() if number > epoch and one.began > loss.at]
        if not later:
            return Setback(job, loss.worker, loss.how, None, None, alone=False)
        after = min(later, key=lambda one: one.began)
        saved = before.reached(after.step)
        alone = not any(begin < after.began and end > saved - 3.0 for begin, end, _ in self.troubled)
        alone &= not any(saved - TAKEOVER_SECONDS < one.at < after.began for one in self.losses if one is not loss)
        return Setback(job, loss.worker, loss.how, after.began - loss.at, max(0.0, loss.at - saved), alone)
