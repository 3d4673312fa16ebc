"""A stopwatch for this process's own work."""

from __future__ import annotations

import time

import torch


class Watch:
    """Milliseconds since its creation; on a CPU at most the CPU time per thread of this process."""

    def __init__(self) -> None:
        self._own = not torch.cuda.is_available()
        self._began, self._worked = time.perf_counter(), time.process_time()

    def ms(self) -> float:
        wall, ran = time.perf_counter() - self._began, time.process_time() - self._worked
        return 1000 * (min(wall, ran / torch.get_num_threads()) if self._own and ran > 0 else wall)
