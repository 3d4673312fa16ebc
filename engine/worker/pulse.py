"""Watchdog: what each thread of the worker is doing, and the deadline for it.

A worker that misses a deadline stops its heartbeats, so its jobs go to others, and ends, so that its supervisor
restarts it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["load", "encode", "step", "decode"]

DEADLINES: dict[str, float] = {"load": 900.0, "encode": 60.0, "decode": 300.0}  # seconds
STEP_LEAST = 10.0
STEP_FACTOR = 20.0
STEPS_REMEMBERED = 101


class Pulse:
    """Written by the working threads, read by the heartbeat loop: single assignments, no lock.

    `slowest`: calibrated seconds of the slowest step of the loaded models, so that a step of a large model after many
    of a small one is not late.
    """

    def __init__(self, slowest: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._slowest = clock, slowest
        self._now: dict[str, tuple[Phase, float]] = {}
        self._steps: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    @contextmanager
    def phase(self, thread: str, phase: Phase) -> Iterator[None]:
        """Time a phase of `thread`. The first step counts as loading, since it may still compile and allocate."""
        began = self._clock()
        self.busy(thread, "load" if phase == "step" and not self._steps else phase)
        try:
            yield
        finally:
            self.rest(thread)
            if phase == "step":
                self._steps.append(self._clock() - began)

    def busy(self, thread: str, phase: Phase) -> None:
        """Note that `thread` starts `phase` now."""
        self._now[thread] = (phase, self._clock())

    def rest(self, thread: str) -> None:
        self._now.pop(thread, None)

    def step_seconds(self) -> float:
        """Return the median of the last steps; 0 before the first."""
        return statistics.median(tuple(self._steps)) if self._steps else 0.0

    def deadline(self, phase: Phase) -> float:
        if phase == "step":
            return max(STEP_LEAST, STEP_FACTOR * max(self.step_seconds(), self._slowest))
        if phase == "decode":  # a decode may wait for a step (`engine.cores`)
            return DEADLINES[phase] + self.deadline("step")
        return DEADLINES[phase]

    def late(self) -> str | None:
        """Return a sentence about a missed deadline; None when there is none."""
        now = self._clock()
        for thread, (phase, began) in dict(self._now).items():
            if now - began > self.deadline(phase):
                return (
                    f"{thread} has been in one {phase} for {now - began:.0f} s (at most {self.deadline(phase):.0f} s)."
                )
        return None
