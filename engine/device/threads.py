"""Keeps threads that compute beside the engine from slowing it down.

Each Python thread that computes on several cores gets its own team of OpenMP threads, and keeps it. As soon as a
process has more such threads than cores, OpenMP lets all of them sleep at once at each barrier, in place of waiting
briefly. A step of a small network then takes 1.5 to 2 times as long, even if the other teams are idle
(docs/decisions/0079-one-team-of-threads-at-a-time.md).
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

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
