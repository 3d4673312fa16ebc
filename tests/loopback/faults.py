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
class Trouble:
    """One ordered fault. Without a `status` the request is only late."""

    method: str
    path: str
    times: float  # how many requests it hits at most
    until: float
    status: int | None = None
    code: int = 0
    message: str = ""
    retry_after: float = 0.5  # seconds, of 429
    everywhere: bool = False  # 429 of the global limit
    delay: float = 0.0  # seconds before the request is carried out: a slow upload
    late: float = 0.0  # seconds after it: a slow answer
    carried_out: bool = False  # it takes effect, although the answer denies it
    broken: bool = False  # no answer: the connection breaks
    met: int = 0

    def matches(self, method: str, path: str, now: float) -> bool:
        if self.met >= self.times or now >= self.until:
            return False
        return self.method in ("*", method) and fnmatchcase(path, self.path)


class Troubles:
    """A test's faults, in the order in which it ordered them. The first match hits a request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.orders: list[Trouble] = []

    def storm(
        self, status: int, *, path: str = "*", method: str = "*", times: float = math.inf, seconds: float = math.inf,
        code: int = 0, message: str = "", retry_after: float = 0.5, everywhere: bool = False, carried_out: bool = False,
    ) -> Trouble:  # fmt: skip
        """Answer the next `times` requests, or all for `seconds`, with `status`."""
        return self._add(
            Trouble(
                method, path, times, self._clock() + seconds, status, code, message, retry_after, everywhere,
                carried_out=carried_out,
            )
        )  # fmt: skip

    def slow(
        self, delay: float, *, path: str = "*", method: str = "*", times: float = math.inf, seconds: float = math.inf,
        late: float = 0.0,
    ) -> Trouble:  # fmt: skip
        """Requests take effect after `delay` seconds, and the answer comes `late` seconds later."""
        return self._add(Trouble(method, path, times, self._clock() + seconds, delay=delay, late=late))

    def break_lines(
        self, *, path: str = "*", method: str = "*", times: float = 1, carried_out: bool = False, delay: float = 0.0
    ) -> Trouble:
        """Break the connection without an answer, before or after the request takes effect, `delay` seconds later."""
        return self._add(Trouble(method, path, times, math.inf, carried_out=carried_out, broken=True, delay=delay))

    def over(self) -> None:
        """End all faults."""
        self.orders.clear()

    def meet(self, method: str, path: str) -> Trouble | None:
        """The fault that hits this request; counted."""
        now = self._clock()
        for trouble in self.orders:
            if trouble.matches(method, path, now):
                trouble.met += 1
                return trouble
        return None

    def _add(self, trouble: Trouble) -> Trouble:
        self.orders.append(trouble)
        return trouble
