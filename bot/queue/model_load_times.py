"""Learns from workers' progress messages how long a model takes to load. Pure; times are seconds since 1970.

Two messages of a worker give a rate. No message marks the end: the worker falls silent.
"""

from __future__ import annotations

from dataclasses import dataclass

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
