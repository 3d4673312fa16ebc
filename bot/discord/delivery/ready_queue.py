"""A queue of names: some sleep until a moment, others are ready in order of their rank.

Pure. Ready names stand in one of two lines; a name is in one place at a time. A change takes O(log n): it does not look
at the names that do not move.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

HeapEntry = tuple[float, int, str]  # time or rank, number of the move, name


class ReadyQueue:
    """Stale entries stay in their heap until they reach the top: only the last move of a name counts."""

    def __init__(self) -> None:
        self._sleeping: list[HeapEntry] = []
        self._ready_by_urgency: dict[bool, list[HeapEntry]] = {True: [], False: []}
        self._last_moves: dict[str, int] = {}
        self._move_numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._last_moves)

    def sleep(self, name: str, until: float) -> None:
        """Let the name sleep until that moment."""
        self._push(self._sleeping, name, until)

    def make_ready(self, name: str, is_urgent: bool, rank: float) -> None:
        """Make the name ready in the `is_urgent` line or the other; a lower rank goes first."""
        self._push(self._ready_by_urgency[is_urgent], name, rank)

    def remove(self, name: str) -> None:
        """Remove the name: only an event brings it back."""
        self._last_moves.pop(name, None)

    def pop_due(self, now: float) -> Iterator[str]:
        """Remove and yield the names whose moment has come."""
        while self._first_valid(self._sleeping) and self._sleeping[0][0] <= now:
            name = heapq.heappop(self._sleeping)[2]
            self.remove(name)
            yield name

    def first_ready(self, is_urgent: bool) -> str | None:
        """Return the name of the lowest rank in a line."""
        return self._first_valid(self._ready_by_urgency[is_urgent])

    def next_wake(self) -> float:
        """Return when the first sleeper wakes; infinity for none."""
        return self._sleeping[0][0] if self._first_valid(self._sleeping) else math.inf

    def _push(self, heap: list[HeapEntry], name: str, key: float) -> None:
        number = self._last_moves[name] = next(self._move_numbers)
        heapq.heappush(heap, (key, number, name))

    def _first_valid(self, heap: list[HeapEntry]) -> str | None:
        while heap and self._last_moves.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None
