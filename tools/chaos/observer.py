"""Observes every frame, result and dispatch on the broker, with a connection of its own that no fault cuts.

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

from engine.bus import BrokerUnreachable, Bus
from engine.contract import Frame, JobCancelled, JobFailed, JobFinished, JobStarted, MalformedMessage, Result, decode
from tools.chaos.evidence import Setback

MAX_REPEATABLE = 400  # payloads that can be repeated
PREVIEW_INTERVAL = 4.0
IN_FLIGHT_SECONDS = 1.0  # previews of steps before a fault may arrive so late
FATAL_CAUSES = ("kill", "term")  # after any other fault the worker may still have its jobs
TAKEOVER_SECONDS = 20.0  # seconds that another worker may need to take over


@dataclass
class ClaimRecord:
    """The observations of one epoch of a job. `steps`: image → the time and number of each new step."""

    epoch: int
    worker: str
    step: int
    started_at: float
    steps: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    is_over: bool = False

    def find_reached_at(self, step: int) -> float:
        """Returns the first time at which all images had reached a step."""
        times = [
            next((seen_at for seen_at, k in sightings if k >= step), sightings[-1][0])
            for sightings in self.steps.values()
            if sightings
        ]
        return max(times, default=self.started_at) if step > self.step else self.started_at

    def find_step_after(self, moment: float) -> float | None:
        """Returns the time of its first new step after a moment; None: it made none."""
        return min((at for sightings in self.steps.values() for at, _ in sightings if at > moment), default=None)


@dataclass(frozen=True)
class Loss:
    """A lost worker, and the jobs that it held."""

    lost_at: float
    worker: str
    cause: str
    jobs: tuple[tuple[str, int], ...]


class Observer:
    """Starts with `subscribe`. Times are on the monotonic clock."""

    def __init__(self, bus: Bus, open_jobs: Callable[[], Iterable[str]]) -> None:
        self._bus = bus
        self._open_jobs = open_jobs
        self.jobs: dict[str, dict[int, ClaimRecord]] = defaultdict(dict)
        self.losses: list[Loss] = []
        self.fault_periods: list[tuple[float, float, str]] = []  # start, end, kind: other faults
        self.recorded_messages: deque[tuple[str, bytes]] = deque(maxlen=MAX_REPEATABLE)

    async def subscribe(self) -> None:
        for subject in ("frames.*", "results.>", "work.>"):
            await self._bus.client.subscribe(subject, cb=self._record_message)

    async def request_previews_forever(self) -> None:
        """Asks for frames of every open job, for ever."""
        while True:
            with suppress(BrokerUnreachable):
                for job in list(self._open_jobs()):
                    await self._bus.request_previews(job)
            await asyncio.sleep(PREVIEW_INTERVAL)

    async def _record_message(self, msg: Msg) -> None:
        now = time.monotonic()
        if not msg.subject.startswith("frames."):
            self.recorded_messages.append((msg.subject, msg.data))
            if msg.subject.startswith("results.") and ".liar." not in msg.subject:
                with suppress(MalformedMessage):
                    self._note_result(decode(msg.data, Result), now)  # pyright: ignore[reportArgumentType]
            return
        with suppress(MalformedMessage):
            frame = decode(msg.data, Frame)
            if claim := self.jobs[frame.job].get(frame.epoch):
                progress = claim.steps[frame.image]
                if not progress or progress[-1][1] < frame.step:
                    progress.append((now, frame.step))

    def _note_result(self, result: Result, now: float) -> None:
        claims = self.jobs[result.job]
        if isinstance(result, JobStarted) and result.epoch not in claims:
            claims[result.epoch] = ClaimRecord(result.epoch, result.worker, result.step, now)
        elif isinstance(result, JobFinished | JobFailed | JobCancelled) and result.epoch in claims:
            claims[result.epoch].is_over = True

    def list_running(self, worker: str | None = None) -> list[tuple[str, ClaimRecord]]:
        """The running jobs, of one worker or of all."""
        latest = [(job, claims[max(claims)]) for job, claims in self.jobs.items() if claims]
        return [(job, one) for job, one in latest if not one.is_over and worker in (None, one.worker)]

    def record_loss(self, worker: str, cause: str) -> None:
        """Records that a worker is lost at this moment."""
        jobs = tuple((job, one.epoch) for job, one in self.list_running(worker))
        self.losses.append(Loss(time.monotonic(), worker, cause, jobs))

    def list_setbacks(self) -> list[Setback]:
        """The outcome of every job that lost its worker while it ran."""
        return [self._find_setback(loss, job, epoch) for loss in self.losses for job, epoch in loss.jobs]

    def _find_setback(self, loss: Loss, job: str, epoch: int) -> Setback:
        lost_claim = self.jobs[job][epoch]
        survived_at = lost_claim.find_step_after(loss.lost_at + IN_FLIGHT_SECONDS)
        if loss.cause not in FATAL_CAUSES and survived_at is not None:  # it kept its claim: what comes later is no wait
            return Setback(job, loss.worker, loss.cause, survived_at - loss.lost_at, 0.0, is_isolated=False)
        later_claims = [
            one for number, one in self.jobs[job].items() if number > epoch and one.started_at > loss.lost_at
        ]
        if not later_claims:
            return Setback(job, loss.worker, loss.cause, None, None, is_isolated=False)
        next_claim = min(later_claims, key=lambda one: one.started_at)
        saved_at = lost_claim.find_reached_at(next_claim.step)
        is_isolated = not any(
            start < next_claim.started_at and end > saved_at - 3.0 for start, end, _ in self.fault_periods
        )
        is_isolated &= not any(
            saved_at - TAKEOVER_SECONDS < one.lost_at < next_claim.started_at for one in self.losses if one is not loss
        )
        return Setback(
            job,
            loss.worker,
            loss.cause,
            next_claim.started_at - loss.lost_at,
            max(0.0, loss.lost_at - saved_at),
            is_isolated,
        )
