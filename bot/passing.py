"""Exceptions to the fair order: which job may go before the first in line, and for how long. Pure.

Virtual time alone bounds no waiting time: a tier of tiny weight, or a user behind an endless stream of newcomers, might
wait for ever. So waiting time counts too. A user is *overdue* after waiting `PATIENCE` seconds for a turn, however many
jobs they have. One in `EVERY` dispatches of a pool goes to the user who is overdue longest. So an overdue user, if a
worker can run the job, is served within `EVERY` × (k + 1) dispatches, where k users have waited longer.

A job whose model is in memory may pass a job whose model must be loaded, but each such job for `LOAD` seconds at most.
So two alternating models are not loaded for every job, and nobody waits longer than that for it.

The store asks inside the transaction of the dispatch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

PATIENCE = 300.0
EVERY = 8
LOAD = 20.0
KEPT = 10 * LOAD  # a job passed longer ago and never sent has ended or cannot run
MANY = 1000


class Passing:
    """What one dispatcher remembers of its dispatches."""

    def __init__(self, patience: float = PATIENCE, every: int = EVERY, load: float = LOAD) -> None:
        self.patience, self.every, self.load = patience, every, load
        self._others: Counter[str] = Counter()  # pool → dispatches since the last overdue one
        self._passed: dict[str, float] = {}  # job → since when others pass it
        self._fetched: dict[str, tuple[str, float]] = {}  # pool → the last model to load, and when

    def due(self, pool: str) -> bool:
        """Return whether the pool's next dispatch goes to the user who is overdue longest, if there is one."""
        return self._others[pool] >= self.every - 1

    def before(self, now: float) -> float:
        """Return the time before which a user's wait must have begun to be overdue."""
        return now - self.patience

    def warm(self, pool: str, loaded: Set[str], now: float) -> Set[str]:
        """Return the models whose jobs may pass: those in memory, or only the one that is loading.

        The loading model may need the memory of the others.
        """
        model, at = self._fetched.get(pool, ("", 0.0))
        return {model} if model and model not in loaded and now - at < KEPT else loaded

    def may_pass(self, job: str, now: float) -> bool:
        """Return whether others may still pass this job, which is next and whose model is not in memory."""
        if len(self._passed) > MANY:
            self._passed = {one: since for one, since in self._passed.items() if now - since < KEPT}
        return now - self._passed.setdefault(job, now) < self.load

    def sent(self, pool: str, job: str, now: float, *, fetches: str = "", late: bool = False) -> None:
        """Note a dispatch. `fetches`: its model, if not in memory; `late`: it was the longest overdue user's turn."""
        if fetches:
            self._fetched[pool] = (fetches, now)
        self._passed.pop(job, None)
        self._others[pool] = 0 if late else self._others[pool] + 1
