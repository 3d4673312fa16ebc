"""An event loop that looks at the clock before anything runs that has waited, however long the process was stopped.

Knows nothing of what is looked at.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable


class Turns(selectors.DefaultSelector):
    """An event loop's selector that looks at the clock before anything runs that has waited."""

    def __init__(self) -> None:
        super().__init__()
        self.look: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout)
        if self.look is not None:
            self.look()
        return found


class Loop(asyncio.SelectorEventLoop):
    """The event loop of a process that may lead."""

    def __init__(self) -> None:
        self.turns = Turns()
        super().__init__(self.turns)


def now() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
