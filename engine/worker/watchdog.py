"""Watchdog: what each thread of the worker is doing, and the deadline for it.

A worker that misses a deadline stops its heartbeats, so its jobs go to others, and ends, so that its supervisor
restarts it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["load", "encode", "step", "decode"]

DEADLINES: dict[str, float] = {"load": 900.0, "encode": 60.0, "decode": 300.0}  # seconds
MIN_STEP_DEADLINE = 10.0
STEP_FACTOR = 20.0
MAX_REMEMBERED_STEPS = 101


class Watchdog:
    """Written by the working threads, read by the heartbeat loop: single assignments, no lock.

    `slowest_step`: calibrated seconds of the slowest step of the loaded models. So a step of a large model after many
    of a small one does not count as late.
    """

    def __init__(self, slowest_step: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slowest_step = slowest_step
        self._current_phases: dict[str, tuple[Phase, float]] = {}
        self._step_times: deque[float] = deque(maxlen=MAX_REMEMBERED_STEPS)

    @contextmanager
    def time_phase(self, thread: str, phase: Phase) -> Generator[None]:
        """Time a phase of `thread`. The first step counts as loading, since it may still compile and allocate."""
        start = self._clock()
        self.start_phase(thread, "load" if phase == "step" and not self._step_times else phase)
        try:
            yield
        finally:
            self.end_phase(thread)
            if phase == "step":
                self._step_times.append(self._clock() - start)

    def start_phase(self, thread: str, phase: Phase) -> None:
        """Note that `thread` starts `phase` now."""
        self._current_phases[thread] = (phase, self._clock())

    def end_phase(self, thread: str) -> None:
        self._current_phases.pop(thread, None)

    def get_median_step_seconds(self) -> float:
        """Return the median of the last steps; 0 before the first."""
        return statistics.median(tuple(self._step_times)) if self._step_times else 0.0

    def get_deadline(self, phase: Phase) -> float:
        if phase == "step":
            return max(MIN_STEP_DEADLINE, STEP_FACTOR * max(self.get_median_step_seconds(), self._slowest_step))
        if phase == "decode":  # a decode may wait for a step (`engine.device.core_turns`)
            return DEADLINES[phase] + self.get_deadline("step")
        return DEADLINES[phase]

    def find_missed_deadline(self) -> str | None:
        """Return a sentence about a missed deadline; None when there is none."""
        now = self._clock()
        for thread, (phase, start) in dict(self._current_phases).items():
            if now - start > self.get_deadline(phase):
                return (
                    f"{thread} has been in one {phase} for {now - start:.0f} s (at most "
                    f"{self.get_deadline(phase):.0f} s)."
                )
        return None
