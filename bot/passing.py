"""Who may pass the head of the fair order, and for how long. Pure; the store asks inside the transaction that sends.

Virtual time alone bounds nobody's wait: a tier of tiny weight, or a user behind an endless stream of newcomers, might
wait for ever. So waiting counts. A user is *overdue* who has waited for a turn for `PATIENCE` seconds, however many
jobs they have; of the sends of a pool, one in `EVERY` is the longest overdue one's. Whoever is overdue, and for whom
there is a worker, is thus sent after at most `EVERY` × (k + 1) sends, where k users have waited longer.

A job whose model is in memory may pass one whose model would have to be fetched, each such job for at most `LOAD`
seconds: so two models that alternate are not fetched for every job, and nobody waits longer than that for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

PATIENCE = 300.0
EVERY = 8
LOAD = 20.0
KEPT = 10 * LOAD  # what was passed longer ago, and never sent, is over or out of reach
MANY = 1000


class Passing:
    """What one dispatcher remembers of its sends."""

    def __init__(self, patience: float = PATIENCE, every: int = EVERY, load: float = LOAD) -> None:
        self.patience, self.every, self.load = patience, every, load
        self._others: Counter[str] = Counter()  # pool → sends since the last of an overdue one
        self._passed: dict[str, float] = {}  # job → since when others pass it
        self._fetched: dict[str, tuple[str, float]] = {}  # pool → the model that was last sent for, and when

    def due(self, pool: str) -> bool:
        """True if the next send of the pool is that of whoever has waited longest, if anyone is overdue."""
        return self._others[pool] >= self.every - 1

    def before(self, now: float) -> float:
        """Who waits since then is overdue."""
        return now - self.patience

    def warm(self, pool: str, loaded: Set[str], now: float) -> Set[str]:
        """The models whose jobs may pass: those in memory, or the one that is on its way there, since it may need the
        room of the others.
        """
        model, at = self._fetched.get(pool, ("", 0.0))
        return {model} if model and model not in loaded and now - at < KEPT else loaded

    def may_pass(self, job: str, now: float) -> bool:
        """True if another may still be sent before this job, which is next and whose model is not in memory."""
        if len(self._passed) > MANY:
            self._passed = {one: since for one, since in self._passed.items() if now - since < KEPT}
        return now - self._passed.setdefault(job, now) < self.load

    def sent(self, pool: str, job: str, now: float, *, fetches: str = "", late: bool = False) -> None:
        """This job was sent. `fetches`: a model not in memory; `late`: in the turn of whoever has waited longest."""
        if fetches:
            self._fetched[pool] = (fetches, now)
        self._passed.pop(job, None)
        self._others[pool] = 0 if late else self._others[pool] + 1
