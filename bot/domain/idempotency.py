"""Idempotency keys of presses: a double click makes one job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from cachetools import TTLCache

DOUBLE_CLICK_SECONDS = 10.0  # seconds in which a second press of the same button by the same member is a double click


class IdempotencyKeys:
    """Gives a double click one idempotency key, so that it makes one job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._recent: TTLCache[tuple[str, str], str] = TTLCache(math.inf, DOUBLE_CLICK_SECONDS, timer=clock)

    def key_for(self, custom_id: str, member: str, interaction: str) -> tuple[str, bool]:
        """Return the idempotency key, and whether this is the first press."""
        if earlier_key := self._recent.get((custom_id, member)):
            return earlier_key, False
        key = self._recent[custom_id, member] = f"press:{interaction}"
        return key, True

    def forget(self, custom_id: str, member: str) -> None:
        """Forget a press that made no job: the next one is another attempt, with its own card."""
        self._recent.pop((custom_id, member), None)
