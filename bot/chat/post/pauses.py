"""How long what failed waits until it is tried again: longer each time, and not for ever.

Pure; the clock is an argument. Knows jobs by their names, and nothing of messages.
"""

from __future__ import annotations

from collections.abc import Iterable

FIRST, LONGEST = 2.0, 60.0  # seconds of an outage until the next attempt
GIVEN_UP, AT_MOST = 600.0, 86_400.0  # seconds until one that was given up has another chance


def longer(seconds: float, times: int) -> float:
    """The pause after the same thing failed so many `times` in a row; `seconds` is the least."""
    return max(seconds, min(LONGEST, FIRST * 2.0 ** min(times - 1, 16))) if times else seconds


class GivenUp:
    """Jobs that were given up, and when they have another chance: each time twice as far away."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # when, and the pause that led there

    def __len__(self) -> int:
        return len(self._until)

    def add(self, job: str, now: float) -> None:
        """Once more."""
        pause = min(AT_MOST, 2 * self._until[job][1]) if job in self._until else GIVEN_UP
        self._until[job] = (now + pause, pause)

    def waits(self, job: str, now: float) -> bool:
        """True until it has another chance."""
        return job in self._until and now < self._until[job][0]

    def keep(self, jobs: Iterable[str]) -> None:
        """The others are settled, and forgotten."""
        self._until = {job: self._until[job] for job in jobs if job in self._until}
