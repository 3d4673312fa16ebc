"""What it costs to have a model loaded: those who ask for it meanwhile share the load. Unmeasured ones are free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from bot.store import NewJob

MAX_LOAD_SECONDS = 60.0  # device-seconds that a load costs at most


class LoadCosts:
    """The first request for a model that no worker of its pool has in memory pays the load, the second half of it, the
    third a third, and so on, until it is loaded.

    `estimate_load`: of a pool and a model, the seconds until it is loaded; 0 if it is, or if nobody measured it yet.
    """

    def __init__(self, estimate_load: Callable[[str, str], float]) -> None:
        self._estimate_load = estimate_load
        self._payers = Counter[tuple[str, str]]()

    def add_shares(self, new_jobs: Sequence[NewJob]) -> list[NewJob]:
        """Return the jobs of one request, with its share of each load in the cost of the first job of that model."""
        priced = list[NewJob]()
        models = set[tuple[str, str]]()
        for new_job in new_jobs:
            model = (new_job.pool, new_job.model)
            share = 0.0 if model in models else self._share(model)
            models.add(model)
            priced.append(replace(new_job, cost=new_job.cost + share) if share else new_job)
        return priced

    def count_payers(self, new_jobs: Sequence[NewJob]) -> None:
        """Count an admitted request among those who share its loads."""
        for model in {(new_job.pool, new_job.model) for new_job in new_jobs}:
            if self._estimate_load(*model):
                self._payers[model] += 1

    def _share(self, model: tuple[str, str]) -> float:
        seconds = min(MAX_LOAD_SECONDS, self._estimate_load(*model))
        if not seconds:
            self._payers.pop(model, None)
        return seconds / (self._payers[model] + 1) if seconds else 0.0
