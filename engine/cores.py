"""Who computes on the processor has all of its cores: one at a time, steps and other work by turns.

Two teams of threads on the same cores wait for each other at every barrier, and other numbers of threads give other
last bits. So steps, and all that the decode lane computes at length, have torch's own number of threads, whatever the
load. Between two steps other work goes on for `SHARE` of a step, or is one piece; finished pictures go first. What has
one core of its own takes no turns (`engine.one_core`). Knows threads and a clock; no work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

SHARE = 0.5  # of the last step's time: what other work may take before the next step


class Kind(IntEnum):
    """What is computed, in the order in which it goes. Steps alternate with all else."""

    STEP = 0
    PICTURE = 1  # somebody waits for it; also what the engine's thread does between steps, which wait as long
    OTHER = 2


class Cores:
    """May be used by any thread; whoever holds the cores must not ask for them again.

    Not `shared`: a card computes, and nobody waits.
    """

    def __init__(self, shared: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared, self._clock, self._changed = shared, clock, threading.Condition()
        self._waiting: list[tuple[Kind, int]] = []
        self._arrived = 0
        self._busy = False
        self._step, self._since = 0.0, 0.0  # seconds of the last step, and of other work since

    @property
    def waiting(self) -> int:
        """Threads that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        """Waits for its turn, and has the cores until it leaves."""
        if not self._shared:
            yield
            return
        self._take(kind)
        began = self._clock()
        try:
            yield
        finally:
            self._leave(kind, self._clock() - began)

    def _take(self, kind: Kind) -> None:
        with self._changed:
            self._arrived += 1
            mine = kind, self._arrived
            self._waiting.append(mine)
            try:
                self._changed.wait_for(lambda: not self._busy and self._next() == mine)
            except BaseException:  # an interrupt from the keyboard: nobody shall wait for a turn that is never taken
                self._waiting.remove(mine)
                self._changed.notify_all()
                raise
            self._waiting.remove(mine)
            self._busy = True

    def _leave(self, kind: Kind, took: float) -> None:
        with self._changed:
            if kind is Kind.STEP:
                self._step, self._since = took, 0.0
            else:
                self._since += took
            self._busy = False
            self._changed.notify_all()

    def _next(self) -> tuple[Kind, int]:
        """Other work while it has had less than its share since the last step, else the step."""
        other = min((each for each in self._waiting if each[0] is not Kind.STEP), default=None)
        step = min((each for each in self._waiting if each[0] is Kind.STEP), default=None)
        if other is None or (step is not None and self._since > 0.0 and self._since >= SHARE * self._step):
            assert step is not None
            return step
        return other
