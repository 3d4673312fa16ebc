"""Batch layouts: how many rows each forward has, and the row layout of a batch, cached while the batch is unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from engine.limits import Limits
from engine.rows import Layout
from engine.trajectory import Asked, Trajectory


class Layouts:
    """`buckets`: the allowed batch shapes; few of them, so that few get compiled."""

    def __init__(self, buckets: Sequence[int], limits: Limits) -> None:
        self._buckets, self._limits = tuple(sorted(buckets)), limits
        self._last: tuple[list[Asked], Layout] | None = None

    @property
    def rows(self) -> int:
        """Rows of the last layout, padding included."""
        return 0 if self._last is None else len(self._last[1].owner)

    @property
    def last(self) -> tuple[int, int]:
        """Rows per forward of the last layout, and its number of forwards."""
        size = 1 if self._last is None else self._last[1].size
        return size, max(1, -(-self.rows // size))

    def of(self, batch: Sequence[Trajectory]) -> Layout:
        """Return the batch's layout; the cached one if no image joined, left or changed its inputs."""
        size, asked = self.size(batch), [image.asked for image in batch]
        known = self._last
        if known is None or known[1].size != size or not _same(known[0], asked):
            self._last = known = (asked, Layout.of(batch, size))
        return known[1]

    def size(self, batch: Sequence[Trajectory]) -> int:
        """Return the rows of a forward: the recipe's pinned shape, or the next bucket."""
        rows = min(sum(image.rows for image in batch), self._limits.of(batch[0]))
        return batch[0].bucket or next((size for size in self._buckets if size >= rows), rows)


def _same(some: Sequence[Asked], others: Sequence[Asked]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
