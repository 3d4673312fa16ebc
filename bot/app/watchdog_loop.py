"""An event loop that calls a hook before each iteration, however long the process was suspended."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable


class WatchdogSelector(selectors.DefaultSelector):
    """A selector that calls `before_iteration` after each wait, before the event loop runs anything."""

    def __init__(self) -> None:
        super().__init__()
        self.before_iteration: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        if self.before_iteration is not None:
            self.before_iteration()
        return ready


class WatchdogLoop(asyncio.SelectorEventLoop):
    """The event loop of a process that may lead."""

    def __init__(self) -> None:
        self.selector = WatchdogSelector()
        super().__init__(self.selector)


def boot_seconds() -> float:
    """Return seconds of a clock that also runs while the machine sleeps, if the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
