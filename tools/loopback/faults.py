"""Faults that a test orders: storms of errors, slow answers, lost answers, broken connections.

A method and a path pattern select the requests; a number or seconds limit how many. Knows nothing of what the requests
mean. The clock is injected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

EDITS = "*/messages/*"  # a message by its id, by token or by channel


@dataclass
class Fault:
    """One ordered fault. Without a `status` the request is only late."""

    method: str
    path: str
    times: float  # how many requests it hits at most
    ends_at: float
    status: int | None = None
    code: int = 0
    message: str = ""
    retry_after: float = 0.5  # seconds, of 429
    is_global: bool = False  # 429 of the global limit
    delay: float = 0.0  # seconds before the request is carried out: a slow upload
    delay_after: float = 0.0  # seconds after it: a slow answer
    carried_out: bool = False  # it takes effect, although the answer denies it
    breaks_line: bool = False  # no answer: the connection breaks
    met_count: int = 0

    def matches(self, method: str, path: str, now: float) -> bool:
        if self.met_count >= self.times or now >= self.ends_at:
            return False
        return self.method in ("*", method) and fnmatchcase(path, self.path)


class Faults:
    """A test's faults, in the order of its calls. The first match hits a request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.orders: list[Fault] = []

    def storm(
        self,
        status: int,
        *,
        path: str = "*",
        method: str = "*",
        times: float = math.inf,
        seconds: float = math.inf,
        code: int = 0,
        message: str = "",
        retry_after: float = 0.5,
        is_global: bool = False,
        carried_out: bool = False,
    ) -> Fault:
        """Answer the next `times` requests, or all for `seconds`, with `status`."""
        return self._add(
            Fault(
                method,
                path,
                times,
                self._clock() + seconds,
                status,
                code,
                message,
                retry_after,
                is_global,
                carried_out=carried_out,
            )
        )

    def slow_down(
        self,
        delay: float,
        *,
        path: str = "*",
        method: str = "*",
        times: float = math.inf,
        seconds: float = math.inf,
        delay_after: float = 0.0,
    ) -> Fault:
        """Requests take effect after `delay` seconds, and the answer comes `delay_after` seconds later."""
        return self._add(Fault(method, path, times, self._clock() + seconds, delay=delay, delay_after=delay_after))

    def break_lines(
        self, *, path: str = "*", method: str = "*", times: float = 1, carried_out: bool = False, delay: float = 0.0
    ) -> Fault:
        """Break the connection without an answer, before or after the request takes effect, `delay` seconds later."""
        return self._add(Fault(method, path, times, math.inf, carried_out=carried_out, breaks_line=True, delay=delay))

    def clear(self) -> None:
        """End all faults."""
        self.orders.clear()

    def find_fault(self, method: str, path: str) -> Fault | None:
        """Finds and counts the fault that hits this request."""
        now = self._clock()
        for fault in self.orders:
            if fault.matches(method, path, now):
                fault.met_count += 1
                return fault
        return None

    def _add(self, fault: Fault) -> Fault:
        self.orders.append(fault)
        return fault
