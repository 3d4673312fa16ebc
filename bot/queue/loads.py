"""How long models take into memory, learnt from what workers say while they fetch one. Pure; seconds since 1970.

A worker says now and then how far it is; two of its words make a pace. Nobody says when it is done: it falls silent.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENT = 10.0  # a worker that said nothing for so long is done, or gone


@dataclass(frozen=True)
class _Fetch:
    """One job's model on its way: when it was first and last spoken of, and how far it was then."""

    began: float
    at_first: float
    said: float
    done: float


class Loads:
    """By model; of several workers that fetch it, the one that spoke last."""

    def __init__(self) -> None:
        self._fetches: dict[str, tuple[str, _Fetch]] = {}
        self._took: dict[str, float] = {}

    def note(self, job: str, model: str, done: float, now: float) -> None:
        """A job's worker has `done` (0 to 1) of the model."""
        known, fetch = self._fetches.get(model, ("", None))
        if fetch is None or known != job or done < fetch.done or now - fetch.said > SILENT:
            self._fetches[model] = (job, _Fetch(now, done, now, done))
            return
        self._fetches[model] = (job, _Fetch(fetch.began, fetch.at_first, now, done))
        if done > fetch.at_first and now > fetch.began:
            self._took[model] = (now - fetch.began) / (done - fetch.at_first)

    def done(self, model: str, now: float) -> float | None:
        """How much of the model is in memory; None where nobody fetches it now."""
        _, fetch = self._fetches.get(model, ("", None))
        return None if fetch is None or now - fetch.said > SILENT else fetch.done

    def seconds(self, model: str, now: float) -> float:
        """Until a model that is not in memory is; 0 where that was never seen."""
        return self._took.get(model, 0.0) * (1.0 - (self.done(model, now) or 0.0))
