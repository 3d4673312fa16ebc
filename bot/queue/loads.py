"""Learns from workers' progress messages how long a model takes to load. Pure; times are seconds since 1970.

Two messages of a worker give a rate. No message marks the end: the worker just falls silent.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENT = 10.0  # seconds without a message after which a load is done or lost


@dataclass(frozen=True)
class _Fetch:
    """A model load of one job: times of the first and last message, and the progress (0 to 1) at each."""

    began: float
    at_first: float
    said: float
    done: float


class Loads:
    """Loads by model; of several workers that load it, the one with the latest message."""

    def __init__(self) -> None:
        self._fetches: dict[str, tuple[str, _Fetch]] = {}
        self._took: dict[str, float] = {}

    def note(self, job: str, model: str, done: float, now: float) -> None:
        """Record that a job's worker has loaded the fraction `done` (0 to 1) of the model."""
        known, fetch = self._fetches.get(model, ("", None))
        if fetch is None or known != job or done < fetch.done or now - fetch.said > SILENT:
            self._fetches[model] = (job, _Fetch(now, done, now, done))
            return
        self._fetches[model] = (job, _Fetch(fetch.began, fetch.at_first, now, done))
        if done > fetch.at_first and now > fetch.began:
            self._took[model] = (now - fetch.began) / (done - fetch.at_first)

    def done(self, model: str, now: float) -> float | None:
        """Return the loaded fraction of a model (0 to 1); None if no worker loads it now."""
        _, fetch = self._fetches.get(model, ("", None))
        return None if fetch is None or now - fetch.said > SILENT else fetch.done

    def seconds(self, model: str, now: float) -> float:
        """Return the seconds until a model is loaded; 0 if no load was ever measured."""
        return self._took.get(model, 0.0) * (1.0 - (self.done(model, now) or 0.0))
