"""What is sent or running right now, as memory knows it: epochs, steps, signs of life. SQL has what must last.

So a frame costs no SQL. Knows records and frames; does no I/O. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bot.queue.loads import Loads
from bot.store import Record
from engine.job import Frame, Loading

PAUSED = 900.0  # seconds after which no pause lasts


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

    def may_be(self, epoch: int) -> bool:
        """True of the claim that we know of; before that, of any later one."""
        return epoch == self.record.epoch if self.claimed else epoch >= max(self.epoch, self.record.epoch + 1)

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
        self.first: Callable[[Record, float], None] = lambda *_: None  # called at a run's first preview
        self.behind = 0.0  # until when reports wait at the broker: a job without a claim may be done, and not heard of
        self.loads = Loads()
        self.paused: dict[str, float] = {}  # job → since when, as far as we know: a worker ends a pause by itself
        self._cost_left: dict[str, float] = {}  # pool → of its runs together: asked at each look at any job

    def put(self, record: Record, now: float) -> Run:
        """A job was sent, or a worker began it; a known run keeps the furthest step."""
        old = self.runs.get(record.id)
        step = max(record.step, old.step if old else 0)
        run = Run(record, record.epoch, step, now)
        if old is not None:
            run.left, run.said, run.drawn = old.left, old.said, min(old.drawn, record.epoch)
        self.drop(record.id)
        self.runs[record.id] = run
        self._count(run, run.cost_left)
        return run

    def drop(self, job: str) -> None:
        """The job is over, or waits again."""
        self.paused.pop(job, None)
        if run := self.runs.pop(job, None):
            self._count(run, -run.cost_left)

    def restart(self, job: str) -> None:
        """It begins again from nothing."""
        if run := self.runs.get(job):
            before, run.step = run.cost_left, 0
            self._count(run, run.cost_left - before)

    def frame(self, frame: Frame, now: float) -> Run | None:
        """A frame as a sign of life. None if it is of no use: unknown job, another epoch, or beyond its recipe.

        Before we hear that a worker began, nobody knows whose it is: it is shown, and counts as no step.
        """
        run = self.runs.get(frame.job)
        if run is None or not run.may_be(frame.epoch):
            return None
        if frame.image >= run.record.images or frame.of != run.record.steps or frame.step > frame.of:
            return None
        before = run.cost_left
        if frame.step > run.step:  # it goes on
            self.paused.pop(frame.job, None)
        if run.drawn < 0:
            self.first(run.record, now)
        run.epoch, run.drawn, run.beat = frame.epoch, frame.epoch, now
        run.step = max(run.step, frame.step) if run.claimed else run.step
        run.left, run.said = frame.seconds_left, now
        self._count(run, run.cost_left - before)
        return run

    def loading(self, loading: Loading, now: float) -> Run | None:
        """A model on its way into memory, as a sign of life. None if it is of no use: another job's or model's, of an
        older epoch, or said before a preview that came first.
        """
        run = self.runs.get(loading.job)
        if run is None or not run.may_be(loading.epoch) or loading.epoch <= run.drawn:
            return None
        if loading.model != run.record.model:
            return None
        run.epoch, run.beat = loading.epoch, now
        self.loads.note(loading.job, loading.model, loading.done, now)
        return run

    def cost_left(self, pool: str) -> float:
        """Device-seconds that the pool's runs still need, by their estimates."""
        return max(0.0, self._cost_left.get(pool, 0.0)) if self.runs else 0.0

    def spare(self, pool: str, rows: int, free: int, now: float) -> int:
        """Rows of paused runs that others may have, of a pool whose workers have `rows`, of which so many are `free`.

        Both must say so: we who paused, and the workers, where a pause may have ended long ago.
        """
        known = [job for job, since in self.paused.items() if now - since < PAUSED and job in self.runs]
        resting = sum(self.runs[job].record.rows for job in known if self.runs[job].record.pool == pool)
        if not resting:
            return 0
        runs = [run for run in self.runs.values() if run.record.pool == pool]
        coming = sum(run.record.rows for run in runs if not run.claimed)
        return max(0, min(resting, sum(run.record.rows for run in runs) - (rows - free) - coming))

    def _count(self, run: Run, change: float) -> None:
        pool = run.record.pool
        self._cost_left[pool] = self._cost_left.get(pool, 0.0) + change if self.runs else 0.0
