"""How long something took. Knows clocks, and nothing of what is timed."""

from __future__ import annotations

import time

import torch


class Watch:
    """Milliseconds of what this thread does; on a processor no more than our own threads computed meanwhile."""

    def __init__(self) -> None:
        self._own = not torch.cuda.is_available()
        self._began, self._worked = time.perf_counter(), time.process_time()

    def ms(self) -> float:
        wall, ran = time.perf_counter() - self._began, time.process_time() - self._worked
        return 1000 * (min(wall, ran / torch.get_num_threads()) if self._own and ran > 0 else wall)
