"""The sent and running jobs in memory: epochs, steps, heartbeats. SQL has all that must survive a restart.

So a frame costs no SQL. It knows records and frames, and how long models took to load; it does no I/O. Times are
seconds since 1970.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bot.policy.rules.effective_rules import RunningLimits
from bot.policy.worker_losses import LossLog, WorkerLoss
from bot.store import JobRecord
from engine.contract import Frame, JobModelLoading, required_blobs

MAX_PAUSE_SECONDS = 900.0  # longest pause, in seconds


@dataclass
class ActiveJob:
    """A sent or running job. `reported_seconds_left`: seconds left, as its worker reported at `reported_at`."""

    record: JobRecord
    epoch: int
    step: int
    last_heartbeat: float
    claimed_at: float = 0.0  # since when this bot knows the claim
    reported_seconds_left: float | None = None
    reported_at: float = 0.0
    preview_epoch: int = -1  # newest epoch with a preview: its model is in memory
    preview_step: int = 0  # step of the newest preview, which may come before its worker's start is reported

    @property
    def is_claimed(self) -> bool:
        """True once a worker reported its start."""
        return self.record.state == "running"

    def accepts_epoch(self, epoch: int) -> bool:
        """Return True for the epoch of the known claim; before there is one, for any later epoch."""
        return epoch == self.record.epoch if self.is_claimed else epoch >= max(self.epoch, self.record.epoch + 1)

    @property
    def done_share(self) -> float:
        """The share of its price that is known to have run."""
        return self.record.find_done_share(self.step)

    @property
    def remaining_cost(self) -> float:
        """Device-seconds of the estimate that remain."""
        return self.record.cost * (1.0 - self.done_share)

    def estimate_seconds_left(self, now: float) -> float | None:
        """Return the worker's last estimate less the time since; None before the first."""
        return (
            None
            if self.reported_seconds_left is None
            else max(0.0, self.reported_seconds_left - (now - self.reported_at))
        )


class ActiveJobs:
    """All active jobs by id. The dispatcher adds them, frames refresh them, and the ends of jobs remove them."""

    def __init__(self, on_first_preview: Callable[[JobRecord, float], None] = lambda _record, _now: None) -> None:
        self.by_id: dict[str, ActiveJob] = {}
        self._on_first_preview = on_first_preview  # called at a job's first preview
        self.results_behind_until = 0.0  # until then results may wait at the broker: a job without a claim may be done
        self.load_times = ModelLoadTimes()
        self.paused_since: dict[str, float] = {}  # job → pause begin; a worker may end a pause unannounced
        self.next_attempt_at: dict[str, float] = {}  # job → end of the pause before it; until then no worker may run it
        self.losses = LossLog()
        self.guild_limits = RunningLimits()  # as the dispatcher last read it
        # called when rows may be free for waiting jobs; the dispatcher sets it
        self.on_rows_freed: Callable[[], None] = lambda: None
        self._blob_uses: Counter[str] = Counter()  # SHA-256 of an input → the jobs that need it
        self._remaining_costs: dict[str, float] = {}  # pool → sum over its jobs; each view of a job reads it

    def put(self, record: JobRecord, now: float) -> ActiveJob:
        """Add a sent or started job. A known job keeps its furthest step."""
        known = self.by_id.get(record.id)
        step = max(record.step, known.step if known else 0)
        active_job = ActiveJob(record, record.epoch, step, now, claimed_at=now)
        if known is not None:
            if known.record.epoch == record.epoch:
                active_job.claimed_at = known.claimed_at
            active_job.reported_seconds_left = known.reported_seconds_left
            active_job.reported_at = known.reported_at
            active_job.preview_epoch = min(known.preview_epoch, record.epoch)
        self.remove(record.id)
        self.by_id[record.id] = active_job
        self._blob_uses.update(required_blobs(record.task))
        self._add_cost(active_job, active_job.remaining_cost)
        return active_job

    def follow_record(self, record: JobRecord) -> None:
        """Take a job's changed row: rows, cost and recipe. An unknown job stays unknown, and a newer claim stays."""
        active_job = self.by_id.get(record.id)
        if active_job is not None and record.epoch >= active_job.record.epoch:
            old_cost = active_job.remaining_cost
            active_job.record = record
            self._add_cost(active_job, active_job.remaining_cost - old_cost)

    def find_step(self, record: JobRecord) -> int:
        """Return the furthest step known of a job; it may be further."""
        active_job = self.by_id.get(record.id)
        return record.step if active_job is None else max(record.step, active_job.step)

    def remove(self, job: str) -> None:
        """Remove a job that ended or waits again."""
        self.paused_since.pop(job, None)
        if active_job := self.by_id.pop(job, None):
            self._add_cost(active_job, -active_job.remaining_cost)
            self._remove_blob_uses(active_job.record)

    def needs_blob(self, sha256: str) -> bool:
        """Return whether a job has this input."""
        return self._blob_uses[sha256] > 0

    def record_loss(self, active_job: ActiveJob, now: float) -> bool:
        """Record that a job lost its worker. Return whether its losses by now make it a poison job."""
        record = active_job.record
        self.losses.record_loss(WorkerLoss(record.id, record.worker, active_job.claimed_at, now))
        return self.losses.points_at(record.id, record.attempts_without_progress + 1)

    def reset_steps(self, job: str) -> None:
        """Set a job back to step 0."""
        if active_job := self.by_id.get(job):
            old_cost = active_job.remaining_cost
            active_job.step = 0
            self._add_cost(active_job, active_job.remaining_cost - old_cost)

    def record_frame(self, frame: Frame, now: float) -> ActiveJob | None:
        """Take a frame as a heartbeat. None for an unknown job, another epoch, or a step beyond its recipe.

        Before a worker's start is reported, the sender is unknown: the frame is shown, but its step does not count.
        """
        active_job = self.by_id.get(frame.job)
        if active_job is None or not active_job.accepts_epoch(frame.epoch):
            return None
        if (
            frame.image not in active_job.record.final_images
            or frame.total_steps != active_job.record.steps
            or frame.step > frame.total_steps
        ):
            return None
        old_cost = active_job.remaining_cost
        if frame.step > active_job.step:  # the job runs, so a pause is over
            self.paused_since.pop(frame.job, None)
        if active_job.preview_epoch < 0:
            self._on_first_preview(active_job.record, now)
        active_job.epoch = frame.epoch
        active_job.preview_epoch = frame.epoch
        active_job.preview_step = frame.step
        active_job.last_heartbeat = now
        active_job.step = max(active_job.step, frame.step) if active_job.is_claimed else active_job.step
        active_job.reported_seconds_left = frame.seconds_left
        active_job.reported_at = now
        self._add_cost(active_job, active_job.remaining_cost - old_cost)
        return active_job

    def record_loading(self, loading: JobModelLoading, now: float) -> ActiveJob | None:
        """Take a model's loading progress as a heartbeat. None if it does not fit the job, or a preview overtook it."""
        active_job = self.by_id.get(loading.job)
        if (
            active_job is None
            or not active_job.accepts_epoch(loading.epoch)
            or loading.epoch <= active_job.preview_epoch
        ):
            return None
        if loading.model != active_job.record.model:
            return None
        active_job.epoch = loading.epoch
        active_job.last_heartbeat = now
        self.load_times.record_progress(loading.job, loading.model, loading.loaded_share, now)
        return active_job

    def remaining_cost(self, pool: str) -> float:
        """Return the estimated device-seconds that the pool's jobs still need."""
        return max(0.0, self._remaining_costs.get(pool, 0.0)) if self.by_id else 0.0

    def count_paused_rows(self, pool: str, rows: int, free_rows: int, now: float) -> int:
        """Return the rows of paused jobs that other jobs may use, of a pool whose workers have `rows` and `free_rows`.

        The rows of a job that waits for its next attempt count: nobody runs it. Counts a paused row only if the workers
        report it as free: a worker may have ended a pause long ago.
        """
        delayed_jobs = [run for job in self.next_attempt_at if (run := self.by_id.get(job)) and run.record.pool == pool]
        delayed_rows = sum(run.record.rows for run in delayed_jobs)
        paused_jobs = [
            job for job, since in self.paused_since.items() if now - since < MAX_PAUSE_SECONDS and job in self.by_id
        ]
        paused_rows = sum(self.by_id[job].record.rows for job in paused_jobs if self.by_id[job].record.pool == pool)
        if not paused_rows:
            return delayed_rows
        pool_jobs = [
            run for job, run in self.by_id.items() if run.record.pool == pool and job not in self.next_attempt_at
        ]
        unclaimed_rows = sum(run.record.rows for run in pool_jobs if not run.is_claimed)
        freed_rows = sum(run.record.rows for run in pool_jobs) - (rows - free_rows) - unclaimed_rows
        return delayed_rows + max(0, min(paused_rows, freed_rows))

    def _remove_blob_uses(self, record: JobRecord) -> None:
        for sha256 in required_blobs(record.task):
            self._blob_uses[sha256] -= 1
            if not self._blob_uses[sha256]:
                del self._blob_uses[sha256]

    def _add_cost(self, active_job: ActiveJob, delta: float) -> None:
        pool = active_job.record.pool
        self._remaining_costs[pool] = self._remaining_costs.get(pool, 0.0) + delta if self.by_id else 0.0


SILENT_SECONDS = 10.0  # seconds without a message after which a load is done or lost


@dataclass(frozen=True)
class _ModelLoad:
    """A model load of one job: times of the first and last message, and the progress (0 to 1) at each."""

    started_at: float
    first_progress: float
    reported_at: float
    progress: float


class ModelLoadTimes:
    """Loads by model; of several workers that load it, the one with the latest message."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[str, _ModelLoad]] = {}
        self._load_seconds: dict[str, float] = {}

    def record_progress(self, job: str, model: str, progress: float, now: float) -> None:
        """Record that a job's worker has loaded the fraction `progress` (0 to 1) of the model."""
        known_job, load = self._loads.get(model, ("", None))
        if load is None or known_job != job or progress < load.progress or now - load.reported_at > SILENT_SECONDS:
            self._loads[model] = (job, _ModelLoad(now, progress, now, progress))
            return
        self._loads[model] = (job, _ModelLoad(load.started_at, load.first_progress, now, progress))
        if progress > load.first_progress and now > load.started_at:
            self._load_seconds[model] = (now - load.started_at) / (progress - load.first_progress)

    def get_progress(self, model: str, now: float) -> float | None:
        """Return the loaded fraction of a model (0 to 1); None if no worker loads it now."""
        _, load = self._loads.get(model, ("", None))
        return None if load is None or now - load.reported_at > SILENT_SECONDS else load.progress

    def estimate_seconds(self, model: str, now: float) -> float:
        """Return the seconds until a model is loaded; 0 if no load was ever measured."""
        return self._load_seconds.get(model, 0.0) * (1.0 - (self.get_progress(model, now) or 0.0))
