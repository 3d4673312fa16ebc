"""What this process did not take of what others said, and why: for the log and for `darkroom doctor`.

Whoever may write to the broker may write anything, under any name, as often as they like. So each reason of each
speaker is logged once in a while, a flood of them is summed up, and only the newest of them are kept. Knows no bus.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.logline import escaped

log = logging.getLogger(__name__)

MOST = 64  # refusals that are kept
AGAIN = 600.0  # seconds until the same one is logged again
LINES, WINDOW = 20, 60.0  # of the log, and the seconds in which there are so many at the most
WHO_CHARS, WHY_CHARS = 120, 300
RECENT = 60.0  # seconds: a worker that lives says its word again long before


@dataclass(frozen=True)
class Refusal:
    """The same word of the same speaker: how often it came, when last, and when it was last logged."""

    who: str
    why: str
    count: int
    at: float
    logged: float | None = None

    def __str__(self) -> str:
        return f"{self.who}, which is refused: {self.why}"


class Refusals:
    """`clock` never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Refusal] = OrderedDict()
        self._began, self._lines, self._unsaid = clock(), 0, 0

    def note(self, who: str, why: str) -> None:
        """`who` said what; `why` it is refused. Both may hold words of a stranger."""
        key = _short(who, WHO_CHARS), _short(why, WHY_CHARS)
        now, known = self._clock(), self._kept.pop(key, None)
        one = replace(known, count=known.count + 1, at=now) if known else Refusal(*key, count=1, at=now)
        self._kept[key] = self._logged(one, now) if one.logged is None or now - one.logged >= AGAIN else one
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def recent(self) -> list[Refusal]:
        """What was refused within the last minute, the newest first."""
        return [one for one in reversed(self._kept.values()) if self._clock() - one.at <= RECENT]

    def _logged(self, one: Refusal, now: float) -> Refusal:
        """The same, and in the log, unless the log has enough of them already."""
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
    """On one line, and no longer than that."""
    said = escaped(text[:most])
    return said if len(said) <= most and len(text) <= most else f"{said[: most - 1]}…"
