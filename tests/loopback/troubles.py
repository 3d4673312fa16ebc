"""Troubles that a test orders: storms of errors, slow answers, answers that get lost, lines that break.

Which requests they befall is said by method and path pattern, how many by number or by seconds. Knows nothing of what
the requests mean; the clock is injected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

EDITS = "*/messages/*"  # a message by its id, over the token or in the channel


@dataclass
class Trouble:
    """One order. Without a `status` the request is only late."""

    method: str
    path: str
    times: float  # how many requests it befalls at most
    until: float
    status: int | None = None
    code: int = 0
    message: str = ""
    retry_after: float = 0.5  # seconds, of 429
    everywhere: bool = False  # 429 for all requests together
    delay: float = 0.0  # seconds before the request is carried out: a slow upload
    late: float = 0.0  # seconds after it: a slow answer
    carried_out: bool = False  # it takes effect, and the answer says that it did not
    broken: bool = False  # no answer: the line breaks
    met: int = 0

    def befalls(self, method: str, path: str, now: float) -> bool:
        if self.met >= self.times or now >= self.until:
            return False
        return self.method in ("*", method) and fnmatchcase(path, self.path)


class Troubles:
    """The orders of a test, in the order in which they were given; the first that fits a request befalls it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.orders: list[Trouble] = []

    def storm(
        self, status: int, *, path: str = "*", method: str = "*", times: float = math.inf, seconds: float = math.inf,
        code: int = 0, message: str = "", retry_after: float = 0.5, everywhere: bool = False, carried_out: bool = False,
    ) -> Trouble:  # fmt: skip
        """The next `times` requests, or all for `seconds`, are answered with `status`."""
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
        """Requests take effect after `delay` seconds, and are answered `late` seconds after that."""
        return self._add(Trouble(method, path, times, self._clock() + seconds, delay=delay, late=late))

    def break_lines(
        self, *, path: str = "*", method: str = "*", times: float = 1, carried_out: bool = False, delay: float = 0.0
    ) -> Trouble:
        """The connection ends without an answer, after the request took effect or before; `delay` seconds later."""
        return self._add(Trouble(method, path, times, math.inf, carried_out=carried_out, broken=True, delay=delay))

    def over(self) -> None:
        """No more troubles."""
        self.orders.clear()

    def meet(self, method: str, path: str) -> Trouble | None:
        """What befalls this request; counted."""
        now = self._clock()
        for trouble in self.orders:
            if trouble.befalls(method, path, now):
                trouble.met += 1
                return trouble
        return None

    def _add(self, trouble: Trouble) -> Trouble:
        self.orders.append(trouble)
        return trouble
