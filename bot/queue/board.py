"""What is sent or running right now, as memory knows it: epochs, steps, signs of life. SQL has what must last.

So a frame costs no SQL. Knows records and frames; does no I/O. Times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.store import Record
from engine.job import Frame, Loading


@dataclass
class Run:
    """One job that left the queue. `beat`: last sign of life; `left`: seconds left as its worker said at `said`."""

    record: Record
    epoch: int
    step: int
    beat: float
    left: float | None = None
    said: float = 0.0
    drawn: int = -1  # the newest epoch of which a preview came: its model is in memory

    @property
    def claimed(self) -> bool:
        """True once a worker said that it began."""
        return self.record.state == "running"

    @property
    def cost_left(self) -> float:
        """Device-seconds of the estimate that are not yet done."""
        return self.record.cost * max(0.0, 1.0 - self.step / self.record.steps)

    def seconds_left(self, now: float) -> float | None:
        """What the worker last said, less the time since; None if it said nothing yet."""
        return None if self.left is None else max(0.0, self.left - (now - self.said))


class Board:
    """All runs by job. Filled by the dispatcher, settled by the settler, refreshed by frames."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.behind = False  # reports wait at the broker: a job without a claim may be done, and not yet heard of
        self._cost_left: dict[str, float] = {}  # pool → of its runs together: asked at each look at any job

    def put(self, record: Record, now: float) -> Run:
        """A job was sent, or a worker began it; a known run keeps the furthest step."""
        old = self.runs.get(record.id)
        step = max(record.step, old.step if old else 0)
        run = Run(record, record.epoch, step, now)
        if old is not None:
            run.left, run.said, run.drawn = old.left, old.said, old.drawn
        self.drop(record.id)
        self.runs[record.id] = run
        self._count(run, run.cost_left)
        return run

    def drop(self, job: str) -> None:
        """The job is over, or waits again."""
        if run := self.runs.pop(job, None):
            self._count(run, -run.cost_left)

    def frame(self, frame: Frame, now: float) -> Run | None:
        """A frame as a sign of life. None if it is of no use: unknown job, older epoch, or beyond its recipe."""
        run = self.runs.get(frame.job)
        if run is None or frame.epoch < run.epoch:
            return None
        if frame.image >= run.record.images or frame.of != run.record.steps or frame.step > frame.of:
            return None
        before = run.cost_left
        run.epoch, run.drawn, run.beat = frame.epoch, frame.epoch, now
        run.step, run.left, run.said = max(run.step, frame.step), frame.seconds_left, now
        self._count(run, run.cost_left - before)
        return run

    def loading(self, loading: Loading, now: float) -> Run | None:
        """A model on its way into memory, as a sign of life. None if it is of no use: another job's or model's, of an
        older epoch, or said before a preview that came first.
        """
        run = self.runs.get(loading.job)
        if run is None or loading.epoch < run.epoch or loading.epoch <= run.drawn:
            return None
        if loading.model != run.record.model:
            return None
        run.epoch, run.beat = loading.epoch, now
        return run

    def cost_left(self, pool: str) -> float:
        """Device-seconds that the pool's runs still need, by their estimates."""
        return max(0.0, self._cost_left.get(pool, 0.0)) if self.runs else 0.0

    def _count(self, run: Run, change: float) -> None:
        pool = run.record.pool
        self._cost_left[pool] = self._cost_left.get(pool, 0.0) + change if self.runs else 0.0
