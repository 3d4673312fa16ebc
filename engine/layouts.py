"""The shapes of forwards: how many rows one has, and the layout of a batch, kept while the batch asks for the same.

Knows limits and buckets; nothing of networks, nor of who is in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.limits import Limits
from engine.rows import Layout
from engine.trajectory import Asked, Trajectory


class Layouts:
    """`buckets`: the batch shapes to choose from, so that compiled ones stay few."""

    def __init__(self, buckets: Sequence[int], limits: Limits) -> None:
        self._buckets, self._limits = tuple(sorted(buckets)), limits
        self._last: tuple[list[Asked], Layout] | None = None

    @property
    def rows(self) -> int:
        """Of the last layout, padding included."""
        return 0 if self._last is None else len(self._last[1].owner)

    @property
    def last(self) -> tuple[int, int]:
        """Rows of a forward of the last layout, and how many forwards."""
        size = 1 if self._last is None else self._last[1].size
        return size, max(1, -(-self.rows // size))

    def of(self, batch: Sequence[Trajectory]) -> Layout:
        """The batch's layout, the last one's where nobody joined, left or changed what it asks for."""
        size, asked = self.size(batch), [image.asked for image in batch]
        known = self._last
        if known is None or known[1].size != size or not _same(known[0], asked):
            self._last = known = (asked, Layout.of(batch, size))
        return known[1]

    def size(self, batch: Sequence[Trajectory]) -> int:
        """Rows of a forward: what the recipe pins, or the next bucket."""
        rows = min(sum(image.rows for image in batch), self._limits.of(batch[0]))
        return batch[0].bucket or next((size for size in self._buckets if size >= rows), rows)


def _same(some: Sequence[Asked], others: Sequence[Asked]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
