"""Idempotency keys of presses: a double click makes one job."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

DOUBLE_CLICK_SECONDS = 10.0  # seconds in which a second press of the same button by the same member is a double click


class IdempotencyKeys:
    """Gives a double click one idempotency key, so that it makes one job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    def key_for(self, custom_id: str, member: str, interaction: str) -> tuple[str, bool]:
        """Return the idempotency key, and whether this is the first press."""
        now, press = self._clock(), (custom_id, member)
        while self._recent and next(iter(self._recent.values()))[0] <= now - DOUBLE_CLICK_SECONDS:
            self._recent.popitem(last=False)
        is_first = press not in self._recent
        if is_first:
            self._recent[press] = (now, f"press:{interaction}")
        return self._recent[press][1], is_first

    def forget(self, custom_id: str, member: str) -> None:
        """Forget a press that made no job: the next one is another attempt, with its own card."""
        self._recent.pop((custom_id, member), None)
