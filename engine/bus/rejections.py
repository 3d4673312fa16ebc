"""Log of refused messages and their reasons, also for `darkroom doctor`.

Any client of the broker may send anything, under any name, at any rate. So it logs each reason of each sender once in a
while, summarises a flood, and keeps only the newest refusals.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.process.log_format import escape

log = logging.getLogger(__name__)

MAX_KEPT = 64  # refusals kept
REPEAT_SECONDS = 600.0  # seconds until the same one is logged again
# at most so many log lines in so many seconds
MAX_LINES = 20
WINDOW_SECONDS = 60.0
SUBJECT_CHARS = 120
REASON_CHARS = 300
RECENT_SECONDS = 60.0  # seconds: a live worker repeats its message long before


@dataclass(frozen=True)
class Rejection:
    """Equal messages of one sender: how often they came, the last time, and the last time they were logged."""

    subject: str
    reason: str
    count: int
    last_at: float
    logged_at: float | None = None

    def __str__(self) -> str:
        return f"{self.subject}, which is refused: {self.reason}"


class RejectionLog:
    """Counts refusals and logs them at a bounded rate. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rejections: OrderedDict[tuple[str, str], Rejection] = OrderedDict()
        self._window_start = clock()
        self._logged_lines = 0
        self._suppressed = 0

    def record(self, subject: str, reason: str) -> None:
        """Count a refusal. `subject` says what was sent, and by whom. Both may contain untrusted text."""
        key = _shorten(subject, SUBJECT_CHARS), _shorten(reason, REASON_CHARS)
        now = self._clock()
        earlier = self._rejections.pop(key, None)
        rejection = (
            replace(earlier, count=earlier.count + 1, last_at=now) if earlier else Rejection(*key, count=1, last_at=now)
        )
        self._rejections[key] = (
            self._log_rejection(rejection, now)
            if rejection.logged_at is None or now - rejection.logged_at >= REPEAT_SECONDS
            else rejection
        )
        if len(self._rejections) > MAX_KEPT:
            self._rejections.popitem(last=False)

    def list_recent(self) -> list[Rejection]:
        """Return what was refused within the last minute, newest first."""
        return [
            rejection
            for rejection in reversed(self._rejections.values())
            if self._clock() - rejection.last_at <= RECENT_SECONDS
        ]

    def _log_rejection(self, rejection: Rejection, now: float) -> Rejection:
        """Log the refusal and return it with its log time, unless the log has enough lines."""
        if now - self._window_start >= WINDOW_SECONDS:
            self._window_start = now
            self._logged_lines = 0
        if self._logged_lines >= MAX_LINES:
            self._suppressed += 1
            return rejection
        self._logged_lines += 1
        suffix = f" ({rejection.count} times by now)" if rejection.count > 1 else ""
        suffix += f"; {self._suppressed} others were refused meanwhile" if self._suppressed else ""
        log.warning("%s%s", rejection, suffix)
        self._suppressed = 0
        return replace(rejection, logged_at=now)


def _shorten(text: str, limit: int) -> str:
    """Return `text` on one line, of at most `limit` characters."""
    shortened = escape(text[:limit])
    return shortened if len(shortened) <= limit and len(text) <= limit else f"{shortened[: limit - 1]}…"
