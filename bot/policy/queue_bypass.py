"""Exceptions to the fair order: which job may go before the first in the queue, and for how long. Pure.

Virtual time alone bounds no waiting time: a tier of tiny weight, or a member behind endless newcomers, might wait for
ever. So waiting time counts too. A member is *overdue* after waiting `PATIENCE_SECONDS` seconds for a turn, however
many jobs they have. One in `OVERDUE_INTERVAL` dispatches of a pool goes to the member who is overdue longest. If k
members have waited longer and a worker can run the job, an overdue member is served within `OVERDUE_INTERVAL` × (k + 1)
dispatches.

A job whose model is in memory may pass a job whose model must be loaded, for `MAX_BYPASS_SECONDS` at most. So two
alternating models are not loaded for every job, and no job waits longer than that for this reason.

The store calls this inside the transaction of the dispatch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

PATIENCE_SECONDS = 300.0
OVERDUE_INTERVAL = 8
MAX_BYPASS_SECONDS = 20.0
FORGET_SECONDS = 10 * MAX_BYPASS_SECONDS  # a passed job that is not sent for so long has ended or cannot run
MAX_TRACKED_JOBS = 1000


class QueueBypass:
    """What one dispatcher remembers of its dispatches."""

    def __init__(
        self,
        patience: float = PATIENCE_SECONDS,
        overdue_interval: int = OVERDUE_INTERVAL,
        max_bypass: float = MAX_BYPASS_SECONDS,
    ) -> None:
        self.patience = patience
        self.overdue_interval = overdue_interval
        self.max_bypass = max_bypass
        self._dispatch_counts: Counter[str] = Counter()  # pool → dispatches since the last overdue one
        self._bypassed_since: dict[str, float] = {}  # job → since when others pass it
        self._last_loads: dict[str, tuple[str, float]] = {}  # pool → the last model to load, and when

    def is_overdue_turn(self, pool: str) -> bool:
        """Return whether the pool's next dispatch goes to the member who is overdue longest, if there is one."""
        return self._dispatch_counts[pool] >= self.overdue_interval - 1

    def overdue_before(self, now: float) -> float:
        """Return the time before which a member's wait must have begun to be overdue."""
        return now - self.patience

    def bypass_models(self, pool: str, loaded: Set[str], now: float) -> Set[str]:
        """Return the models whose jobs may pass: those in memory, or only the one that is loading.

        The loading model may need the memory of the others.
        """
        model, loaded_at = self._last_loads.get(pool, ("", 0.0))
        return {model} if model and model not in loaded and now - loaded_at < FORGET_SECONDS else loaded

    def can_bypass(self, job: str, now: float) -> bool:
        """Return whether others may still pass this job, which is next and whose model is not in memory."""
        if len(self._bypassed_since) > MAX_TRACKED_JOBS:
            self._bypassed_since = {
                other_job: since for other_job, since in self._bypassed_since.items() if now - since < FORGET_SECONDS
            }
        return now - self._bypassed_since.setdefault(job, now) < self.max_bypass

    def note_dispatch(
        self, pool: str, job: str, now: float, *, loads_model: str = "", was_overdue: bool = False
    ) -> None:
        """Note a dispatch.

        `loads_model`: its model, if not in memory; `was_overdue`: it was the turn of the member who is overdue longest.
        """
        if loads_model:
            self._last_loads[pool] = (loads_model, now)
        self._bypassed_since.pop(job, None)
        self._dispatch_counts[pool] = 0 if was_overdue else self._dispatch_counts[pool] + 1
