"""A stopwatch for this process's own work."""

from __future__ import annotations

import time

import torch


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
