"""The sent and running jobs in memory: epochs, steps, heartbeats. SQL has all that must survive a restart.

So a frame costs no SQL. Knows records and frames; does no I/O. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bot.queue.loads import Loads
from bot.store import Record
from engine.job import Frame, Loading

PAUSED = 900.0  # longest pause, in seconds


@dataclass
class Run:
    """A sent or running job. `beat`: last heartbeat; `left`: seconds left, as its worker reported at `said`."""

    record: Record
    epoch: int
    step: int
    beat: float
    left: float | None = None
    said: float = 0.0
    drawn: int = -1  # newest epoch with a preview: its model is in memory

    @property
    def claimed(self) -> bool:
        """True once a worker reported its start."""
        return self.record.state == "running"

    def may_be(self, epoch: int) -> bool:
        """Return True for the epoch of the known claim; before there is one, for any later epoch."""
        return epoch == self.record.epoch if self.claimed else epoch >= max(self.epoch, self.record.epoch + 1)

    @property
    def cost_left(self) -> float:
        """Device-seconds of the estimate that remain."""
        return self.record.cost * max(0.0, 1.0 - self.step / self.record.steps)

    def seconds_left(self, now: float) -> float | None:
        """Return the worker's last estimate less the time since; None before the first."""
        return None if self.left is None else max(0.0, self.left - (now - self.said))


class Board:
    """All runs by job. The dispatcher adds them, frames refresh them, and the ends of jobs remove them."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.first: Callable[[Record, float], None] = lambda *_: None  # called at a run's first preview
        self.behind = 0.0  # until when results may wait at the broker: a job without a claim may be done
        self.loads = Loads()
        self.paused: dict[str, float] = {}  # job → pause begin; a worker may end a pause unannounced
        self._cost_left: dict[str, float] = {}  # pool → sum over its runs; read at each view of any job

    def put(self, record: Record, now: float) -> Run:
        """Add a sent or started job. A known run keeps its furthest step."""
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
        """Remove a job that ended or waits again."""
        self.paused.pop(job, None)
        if run := self.runs.pop(job, None):
            self._count(run, -run.cost_left)

    def restart(self, job: str) -> None:
        """Set a job back to step 0."""
        if run := self.runs.get(job):
            before, run.step = run.cost_left, 0
            self._count(run, run.cost_left - before)

    def frame(self, frame: Frame, now: float) -> Run | None:
        """Take a frame as a heartbeat. None if it does not fit: unknown job, another epoch, or beyond its recipe.

        Before a worker's start is reported, the sender is unknown: the frame is shown, but its step does not count.
        """
        run = self.runs.get(frame.job)
        if run is None or not run.may_be(frame.epoch):
            return None
        if frame.image >= run.record.images or frame.of != run.record.steps or frame.step > frame.of:
            return None
        before = run.cost_left
        if frame.step > run.step:  # the job runs, so a pause is over
            self.paused.pop(frame.job, None)
        if run.drawn < 0:
            self.first(run.record, now)
        run.epoch, run.drawn, run.beat = frame.epoch, frame.epoch, now
        run.step = max(run.step, frame.step) if run.claimed else run.step
        run.left, run.said = frame.seconds_left, now
        self._count(run, run.cost_left - before)
        return run

    def loading(self, loading: Loading, now: float) -> Run | None:
        """Take a model's loading progress as a heartbeat. None if it does not fit: unknown job, other model, older
        epoch, or overtaken by a preview.
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
        """Return the estimated device-seconds that the pool's runs still need."""
        return max(0.0, self._cost_left.get(pool, 0.0)) if self.runs else 0.0

    def spare(self, pool: str, rows: int, free: int, now: float) -> int:
        """Return the rows of paused runs that other jobs may use. The pool's workers have `rows`, `free` of them free.

        Our pauses and the workers' free rows must agree, since a worker may have ended a pause long ago.
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
