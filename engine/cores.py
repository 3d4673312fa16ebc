"""Core turns: one computation at a time uses all processor cores; steps and decodes alternate.

Two teams of threads on the same cores wait for each other at every barrier, and another number of threads gives other
last bits. So steps and long decode work always use torch's own number of threads, under any load. Between two steps
other work may take `SHARE` of a step's time, or run one piece; finished pictures go first. Spare work, for which nobody
waits, runs when nothing else does, or for `SPARE_SHARE` of the steps' time. Work on a single core takes no turns
(`engine.one_core`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

SHARE = 0.5  # of the last step's time, for other work before the next step
SPARE_SHARE = 0.02  # of the time of all steps, for spare work where steps never pause
SPARE_SECONDS = 1.0  # debt of spare work at the start, so that a first job does not wait for it
CALM_SECONDS = 0.5  # without a step, before spare work may run: a job also pauses briefly between two steps


class Kind(IntEnum):
    """The kind of a computation, by priority. Steps alternate with all others."""

    STEP = 0
    PICTURE = 1  # a finished picture, or the engine thread's work between steps
    OTHER = 2
    SPARE = 3  # nobody waits for it


class Cores:
    """The lock on the cores; usable by any thread, not reentrant.

    If not `shared` (the GPU computes), nobody waits.
    """

    def __init__(self, shared: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared, self._clock, self._changed = shared, clock, threading.Condition()
        self._waiting: list[tuple[Kind, int]] = []
        self._arrived = 0
        self._busy = False
        self._step, self._since = 0.0, 0.0  # seconds of the last step, and of other work since
        self._stepped = -math.inf  # when the last step ended
        self._spare = -SPARE_SECONDS  # seconds of spare work that may run before a step

    @property
    def waiting(self) -> int:
        """The number of threads that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        """Wait for a turn and hold the cores until the block ends. Not for spare work: its turn may never come."""
        assert kind is not Kind.SPARE
        with self._turn(kind):
            yield

    @contextmanager
    def spared(self, patience: float) -> Iterator[bool]:
        """Hold the cores for spare work. Yield False, without them, if others had them for `patience` seconds."""
        with self._turn(Kind.SPARE, patience) as is_held:
            yield is_held

    @contextmanager
    def _turn(self, kind: Kind, patience: float | None = None) -> Iterator[bool]:
        if not self._shared:
            yield True
            return
        if not self._take(kind, patience):
            yield False
            return
        began = self._clock()
        try:
            yield True
        finally:
            self._leave(kind, self._clock() - began)

    def _take(self, kind: Kind, patience: float | None) -> bool:
        """Return whether the turn came within `patience` seconds (None: no limit)."""
        with self._changed:
            self._arrived += 1
            mine = kind, self._arrived
            self._waiting.append(mine)
            is_ours = False
            try:
                is_ours = self._changed.wait_for(lambda: not self._busy and self._next() == mine, patience)
            finally:  # after a keyboard interrupt, too: leave the line, so that nobody waits for this turn
                self._waiting.remove(mine)
                if is_ours:
                    self._busy = True
                else:
                    self._changed.notify_all()
            return is_ours

    def _leave(self, kind: Kind, took: float) -> None:
        with self._changed:
            if kind is Kind.STEP:
                self._step, self._since, self._stepped = took, 0.0, self._clock()
                self._spare += SPARE_SHARE * took
            elif kind is Kind.SPARE:
                self._spare -= took
            else:
                self._since += took
            self._busy = False
            self._changed.notify_all()

    def _next(self) -> tuple[Kind, int] | None:
        """Return the next in line: other work within its share since the last step, else the step, else spare work."""
        other = min((each for each in self._waiting if each[0] in (Kind.PICTURE, Kind.OTHER)), default=None)
        step = min((each for each in self._waiting if each[0] is Kind.STEP), default=None)
        spare = min((each for each in self._waiting if each[0] is Kind.SPARE), default=None)
        if spare is not None and other is None and (self._spare > 0.0 or (step is None and self._is_calm())):
            return spare
        if other is None and step is None:
            return None
        if other is None or (step is not None and self._since > 0.0 and self._since >= SHARE * self._step):
            return step
        return other

    def _is_calm(self) -> bool:
        return self._clock() - self._stepped >= CALM_SECONDS
