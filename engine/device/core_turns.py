"""Core turns: one computation at a time uses all processor cores; steps and decodes alternate.

Two teams of threads on the same cores wait for each other at every barrier, and another number of threads gives other
last bits. So steps and long decode work always use torch's own number of threads, under any load, and whoever hands
the cores over ends its team.

Between two steps other work may take `OTHER_WORK_SHARE` of a step's time, or run one piece; finished pictures go first.
Nobody waits for spare work: it runs when nothing else does, or for `SPARE_SHARE` of the steps' time. Work on a single
core takes no turns (`engine.device.core_turns`).
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

OTHER_WORK_SHARE = 0.5  # of the last step's time, for other work before the next step
SPARE_SHARE = 0.02  # of the time of all steps, for spare work where steps never pause
SPARE_SECONDS = 1.0  # debt of spare work at the start, so that a first job does not wait for it
IDLE_SECONDS = 0.5  # without a step, before spare work may run: a job also pauses briefly between two steps


class WorkKind(IntEnum):
    """The kind of a computation, by priority. Steps alternate with all others."""

    STEP = 0
    PICTURE = 1  # a finished picture, or the engine thread's work between steps
    OTHER = 2
    SPARE = 3  # nobody waits for it


class CoreTurns:
    """The lock on the cores; usable by any thread, not reentrant.

    `is_shared`: False where the GPU computes, so that nobody waits.
    """

    def __init__(self, is_shared: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_shared = is_shared
        self._clock = clock
        self._condition = threading.Condition()
        self._waiting: list[tuple[WorkKind, int]] = []
        self._request_count = 0
        self._is_taken = False
        # seconds of the last step, and of other work since
        self._last_step_seconds = 0.0
        self._other_seconds = 0.0
        self._last_step_end = -math.inf  # when the last step ended
        self._spare_seconds = -SPARE_SECONDS  # seconds of spare work that may run before a step

    @property
    def is_shared(self) -> bool:
        """Whether steps and other work take turns on the cores."""
        return self._is_shared

    @property
    def waiting_count(self) -> int:
        """The number of threads that wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def hold(self, kind: WorkKind) -> Generator[None]:
        """Wait for a turn and hold the cores until the block ends. Not for spare work: its turn may never come."""
        assert kind is not WorkKind.SPARE
        with self._hold_turn(kind):
            yield

    @contextmanager
    def hold_for_spare(self, timeout: float) -> Generator[bool]:
        """Hold the cores for spare work. Yield False, without them, if others had them for `timeout` seconds."""
        with self._hold_turn(WorkKind.SPARE, timeout) as is_held:
            yield is_held

    @contextmanager
    def _hold_turn(self, kind: WorkKind, timeout: float | None = None) -> Generator[bool]:
        if not self._is_shared:
            yield True
            return
        if not self._acquire(kind, timeout):
            yield False
            return
        started_at = self._clock()
        try:
            yield True
        finally:
            try:
                if kind is not WorkKind.STEP or self._waiting:  # steps alone keep their team from one to the next
                    release_team()
            finally:
                self._release(kind, self._clock() - started_at)

    def _acquire(self, kind: WorkKind, timeout: float | None) -> bool:
        with self._condition:
            self._request_count += 1
            turn_request = kind, self._request_count
            self._waiting.append(turn_request)
            is_acquired = False
            try:
                is_acquired = self._condition.wait_for(
                    lambda: not self._is_taken and self._next_turn() == turn_request, timeout
                )
            finally:  # after a keyboard interrupt, too: leave the line, so that nobody waits for this turn
                self._waiting.remove(turn_request)
                if is_acquired:
                    self._is_taken = True
                else:
                    self._condition.notify_all()
            return is_acquired

    def _release(self, kind: WorkKind, seconds: float) -> None:
        with self._condition:
            if kind is WorkKind.STEP:
                self._last_step_seconds, self._other_seconds, self._last_step_end = seconds, 0.0, self._clock()
                self._spare_seconds += SPARE_SHARE * seconds
            elif kind is WorkKind.SPARE:
                self._spare_seconds -= seconds
            else:
                self._other_seconds += seconds
            self._is_taken = False
            self._condition.notify_all()

    def _next_turn(self) -> tuple[WorkKind, int] | None:
        """Return the next in line: other work within its share since the last step, else the step, else spare work."""
        other = min(
            (request for request in self._waiting if request[0] in (WorkKind.PICTURE, WorkKind.OTHER)), default=None
        )
        step = min((turn_request for turn_request in self._waiting if turn_request[0] is WorkKind.STEP), default=None)
        spare = min((each for each in self._waiting if each[0] is WorkKind.SPARE), default=None)
        if spare is not None and other is None and (self._spare_seconds > 0.0 or (step is None and self._is_idle())):
            return spare
        if other is None and step is None:
            return None
        if other is None or (
            step is not None
            and self._other_seconds > 0.0
            and self._other_seconds >= OTHER_WORK_SHARE * self._last_step_seconds
        ):
            return step
        return other

    def _is_idle(self) -> bool:
        return self._clock() - self._last_step_end >= IDLE_SECONDS


P = ParamSpec("P")
T = TypeVar("T")
SOFT_PAUSE = 1  # `omp_pause_soft` of OpenMP 5.0: settings stay, and the next computation makes a new team


def release_team() -> None:
    """End this thread's team of OpenMP threads, where torch brings libgomp. Call it outside computations."""
    pause = _find_pause()
    if pause is not None:
        pause(SOFT_PAUSE)


async def compute_in_thread(compute: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run `compute` in a thread of asyncio's pool, and end the team that it made there."""

    def compute_and_release() -> T:
        try:
            return compute(*arguments, **options)
        finally:
            release_team()

    return await asyncio.to_thread(compute_and_release)


@cache
def _find_pause() -> Callable[[int], int] | None:
    """Return `omp_pause_resource_all` (OpenMP 5.0, section 3.2.44) of torch's own libgomp; None if it has none.

    In LLVM's library, which torch brings on macOS, the same call sends the threads of all teams to sleep.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            return ctypes.CDLL(str(path)).omp_pause_resource_all
        except (OSError, AttributeError):  # another library, or an older OpenMP
            continue
    return None


def limit_to_one_core(engine_threads: int) -> None:
    """Make torch compute on one core in this thread: a second team of threads would fight the engine's for the cores.

    torch also gives the number to every thread that starts later, and another number gives other last bits. So a
    short-lived thread resets it for them to `engine_threads`.
    """
    torch.get_num_threads()  # a thread adopts the global number at its first call: make that call now
    torch.set_num_threads(1)
    reset_thread = threading.Thread(target=torch.set_num_threads, args=(engine_threads,))
    reset_thread.start()
    reset_thread.join()


class Stopwatch:
    """Milliseconds since its creation; on a CPU at most the CPU time per thread of this process."""

    def __init__(self) -> None:
        self._counts_cpu_time = not torch.cuda.is_available()
        self._wall_start = time.perf_counter()
        self._cpu_start = time.process_time()

    def elapsed_ms(self) -> float:
        wall_seconds = time.perf_counter() - self._wall_start
        cpu_seconds = time.process_time() - self._cpu_start
        return 1000 * (
            min(wall_seconds, cpu_seconds / torch.get_num_threads())
            if self._counts_cpu_time and cpu_seconds > 0
            else wall_seconds
        )
