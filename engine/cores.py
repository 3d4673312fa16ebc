"""Core turns: one computation at a time uses all processor cores; steps and decodes alternate.

Two teams of threads on the same cores wait for each other at every barrier, and another number of threads gives other
last bits. So steps and long decode work always use torch's own number of threads, under any load. Between two steps
other work may take `SHARE` of a step's time, or run one piece; finished pictures go first. Work on a single core takes
no turns (`engine.one_core`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

SHARE = 0.5  # of the last step's time, for other work before the next step


class Kind(IntEnum):
    """The kind of a computation, by priority. Steps alternate with all others."""

    STEP = 0
    PICTURE = 1  # a finished picture, or the engine thread's work between steps
    OTHER = 2


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

    @property
    def waiting(self) -> int:
        """The number of threads that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        """Wait for a turn and hold the cores until the block ends."""
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
            except BaseException:  # a keyboard interrupt: leave the line, so that nobody waits for this turn
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
        """Return the next in line: other work while it had less than its share since the last step, else the step."""
        other = min((each for each in self._waiting if each[0] is not Kind.STEP), default=None)
        step = min((each for each in self._waiting if each[0] is Kind.STEP), default=None)
        if other is None or (step is not None and self._since > 0.0 and self._since >= SHARE * self._step):
            assert step is not None
            return step
        return other
