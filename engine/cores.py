"""Who computes on the processor has all of its cores: one at a time, steps and other work by turns.

Two teams of threads on the same cores wait for each other at every barrier, and other numbers of threads give other
last bits. So steps, and all that the decode lane computes at length, have torch's own number of threads, whatever the
load. Between two steps other work goes on for `SHARE` of a step, or is one piece; finished pictures go first. What
nobody waits for goes when nothing else does, or for `SPARE_SHARE` of the steps' time. What has one core of its own
takes no turns (`engine.one_core`). Knows threads and a clock; no work.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

SHARE = 0.5  # of the last step's time: what other work may take before the next step
SPARE_SHARE = 0.02  # of the time of all steps: what spare work may take where steps never cease
SPARE_SECONDS = 1.0  # of it that are owed at the start: a first job is not the one to wait
CALM_SECONDS = 0.5  # without a step, until spare work may go: between two steps of a job there is a moment, too


class Kind(IntEnum):
    """What is computed, in the order in which it goes. Steps alternate with all else."""

    STEP = 0
    PICTURE = 1  # somebody waits for it; also what the engine's thread does between steps, which wait as long
    OTHER = 2
    SPARE = 3  # nobody waits for it


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
        self._stepped = -math.inf  # when the last step ended
        self._spare = -SPARE_SECONDS  # seconds of spare work that may go before a step

    @property
    def waiting(self) -> int:
        """Threads that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        """Waits for its turn, and has the cores until it leaves. Not for spare work, whose turn may never come."""
        assert kind is not Kind.SPARE
        if not self._shared:
            yield
            return
        self._take(kind)
        began = self._clock()
        try:
            yield
        finally:
            self._leave(kind, self._clock() - began)

    @contextmanager
    def spared(self, patience: float) -> Iterator[bool]:
        """The cores for spare work. False, and no cores, where others had them for `patience` seconds."""
        if not self._shared:
            yield True
            return
        if not self._take(Kind.SPARE, patience):
            yield False
            return
        began = self._clock()
        try:
            yield True
        finally:
            self._leave(Kind.SPARE, self._clock() - began)

    def _take(self, kind: Kind, patience: float | None = None) -> bool:
        """Whether it was this one's turn within `patience` seconds; None: for as long as it takes."""
        with self._changed:
            self._arrived += 1
            mine = kind, self._arrived
            self._waiting.append(mine)
            try:
                taken = self._changed.wait_for(lambda: not self._busy and self._next() == mine, patience)
            except BaseException:  # an interrupt from the keyboard: nobody shall wait for a turn that is never taken
                self._waiting.remove(mine)
                self._changed.notify_all()
                raise
            self._waiting.remove(mine)
            self._busy = self._busy or taken
            if not taken:
                self._changed.notify_all()
            return taken

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
        """Other work while it has had less than its share since the last step, else the step; spare work at the end."""
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
