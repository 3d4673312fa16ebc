"""Retries of failed requests, later each time.

Knows the edit policy and a job's failures in a row; knows nothing of Discord or of messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bot.chat.post.pauses import longer

if TYPE_CHECKING:
    from bot.chat.post.cases import Case
    from bot.chat.post.edits import Edit, Edits
    from bot.chat.post.troubles import Later

log = logging.getLogger(__name__)

TRIES = 3  # attempts at one message after unexpected errors


class Setbacks:
    """Retries for the courier; `clock` is its clock."""

    def __init__(self, edits: Edits[Any], clock: Callable[[], float]) -> None:
        self._edits, self._clock = edits, clock
        self._outage = False  # according to the last requests

    def over(self, case: Case) -> None:
        """Reset the counters after a request of the case succeeded."""
        case.limited = case.outages = 0
        self._outage = False

    def postpone(self, edit: Edit[Any], case: Case, later: Later) -> None:
        """Try again later: in an outage longer each time. A rate limit that does not end holds only its message."""
        case.limited = case.limited + 1 if later.limited else 0
        case.outages = case.outages + 1 if later.outage else 0
        seconds = longer(later.seconds, case.outages)
        if later.outage and not self._outage:
            self._outage = True
            log.warning("Discord is unreachable, deliveries wait: %s", later)
        level = logging.DEBUG if later.outage else logging.INFO
        log.log(level, "job %s: its message waits %.1f s: %s", edit.job, seconds, later)
        self.again(edit, case, seconds)
        if later.limited and case.limited <= TRIES:
            self._edits.hold(edit.bucket, self._clock() + seconds)

    def again(self, edit: Edit[Any], case: Case, seconds: float) -> None:
        """Queue the same edit again, unless something newer comes."""
        case.fresh = bool(case.frames)
        self._edits.failed(edit, self._clock(), seconds)

    def stumble(self, edit: Edit[Any], case: Case) -> bool:
        """After an unexpected error, try a final again a few times; return False when that is over."""
        if not edit.final or case.troubles >= TRIES - 1:
            return False
        case.troubles += 1
        self.again(edit, case, 2.0**case.troubles)
        return True
