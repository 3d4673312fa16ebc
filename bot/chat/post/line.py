"""A queue of names: some sleep until a moment, others are ready in order of their rank.

Pure. There are two lines of ready names; a name is in one place at a time. A change costs the logarithm of their
number: a thousand that wait are not looked at when one moves.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

Entry = tuple[float, int, str]  # when or rank, number of the move, name


class Line:
    """Stale entries stay in their heap until they reach the top: only the last move of a name counts."""

    def __init__(self) -> None:
        self._asleep: list[Entry] = []
        self._ready: dict[bool, list[Entry]] = {True: [], False: []}
        self._last: dict[str, int] = {}
        self._moves = itertools.count()

    def __len__(self) -> int:
        return len(self._last)

    def sleep(self, name: str, until: float) -> None:
        """Let the name sleep until that moment."""
        self._move(self._asleep, name, until)

    def stand(self, name: str, first: bool, rank: float) -> None:
        """Make the name ready in the `first` line or the other; a lower rank goes first."""
        self._move(self._ready[first], name, rank)

    def leave(self, name: str) -> None:
        """Remove the name: only an event can bring it back."""
        self._last.pop(name, None)

    def woken(self, now: float) -> Iterator[str]:
        """Remove and yield the names whose moment has come."""
        while self._head(self._asleep) and self._asleep[0][0] <= now:
            name = heapq.heappop(self._asleep)[2]
            self.leave(name)
            yield name

    def head(self, first: bool) -> str | None:
        """Return the name of the lowest rank in a line."""
        return self._head(self._ready[first])

    def wakes(self) -> float:
        """Return when the first sleeper wakes; infinity for none."""
        return self._asleep[0][0] if self._head(self._asleep) else math.inf

    def _move(self, heap: list[Entry], name: str, key: float) -> None:
        number = self._last[name] = next(self._moves)
        heapq.heappush(heap, (key, number, name))

    def _head(self, heap: list[Entry]) -> str | None:
        while heap and self._last.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None
