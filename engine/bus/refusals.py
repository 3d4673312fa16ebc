"""Log of refused messages and their reasons, also for `darkroom doctor`.

Any client of the broker may send anything, under any name, at any rate. So each reason of each sender is logged once in
a while, a flood is summarised, and only the newest refusals are kept.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.logline import escaped

log = logging.getLogger(__name__)

MOST = 64  # refusals kept
AGAIN = 600.0  # seconds until the same one is logged again
LINES, WINDOW = 20, 60.0  # at most so many log lines in so many seconds
WHO_CHARS, WHY_CHARS = 120, 300
RECENT = 60.0  # seconds: a live worker repeats its message long before


@dataclass(frozen=True)
class Refusal:
    """Equal messages of one sender: how often they came, the last time, and the last time they were logged."""

    who: str
    why: str
    count: int
    at: float
    logged: float | None = None

    def __str__(self) -> str:
        return f"{self.who}, which is refused: {self.why}"


class Refusals:
    """`clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Refusal] = OrderedDict()
        self._began, self._lines, self._unsaid = clock(), 0, 0

    def note(self, who: str, why: str) -> None:
        """Count a refusal. `who` says what was sent; `why` is the reason. Both may contain untrusted text."""
        key = _short(who, WHO_CHARS), _short(why, WHY_CHARS)
        now, known = self._clock(), self._kept.pop(key, None)
        one = replace(known, count=known.count + 1, at=now) if known else Refusal(*key, count=1, at=now)
        self._kept[key] = self._logged(one, now) if one.logged is None or now - one.logged >= AGAIN else one
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def recent(self) -> list[Refusal]:
        """Return what was refused within the last minute, newest first."""
        return [one for one in reversed(self._kept.values()) if self._clock() - one.at <= RECENT]

    def _logged(self, one: Refusal, now: float) -> Refusal:
        """Log the refusal and return it with its log time, unless the log has enough lines."""
        if now - self._began >= WINDOW:
            self._began, self._lines = now, 0
        if self._lines >= LINES:
            self._unsaid += 1
            return one
        self._lines += 1
        more = f" ({one.count} times by now)" if one.count > 1 else ""
        more += f"; {self._unsaid} others were refused meanwhile" if self._unsaid else ""
        log.warning("%s%s", one, more)
        self._unsaid = 0
        return replace(one, logged=now)


def _short(text: str, most: int) -> str:
    """Return `text` on one line, of at most `most` characters."""
    said = escaped(text[:most])
    return said if len(said) <= most and len(text) <= most else f"{said[: most - 1]}…"
