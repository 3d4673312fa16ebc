"""Batch layouts: how many rows each forward has, and the row layout of a batch, cached while the batch is unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from engine.batching.batch_limits import BatchLimits
from engine.batching.batch_math import RowLayout
from engine.batching.model_inputs import ModelInputs
from engine.batching.trajectory import Trajectory

# Powers of two and the numbers half-way between: padding is under a third of a forward, and shapes stay few.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class BatchLayouts:
    """`buckets`: the allowed batch shapes; few of them, because each is packed, recorded or compiled."""

    def __init__(self, buckets: Sequence[int], limits: BatchLimits) -> None:
        self._buckets = tuple(sorted(buckets))
        self._limits = limits
        self._last_layout: tuple[list[ModelInputs], RowLayout] | None = None

    @property
    def padded_rows(self) -> int:
        """Rows of the last layout, padding included."""
        return 0 if self._last_layout is None else len(self._last_layout[1].owner)

    @property
    def forward_shape(self) -> tuple[int, int]:
        """Rows per forward of the last layout, and its number of forwards."""
        size = 1 if self._last_layout is None else self._last_layout[1].forward_rows
        return size, max(1, -(-self.padded_rows // size))

    @property
    def has_pictures(self) -> bool:
        """Whether rows of the last layout have pictures beside their texts."""
        return self._last_layout is not None and any(self._last_layout[1].pictures_by_forward)

    def layout_for(self, batch: Sequence[Trajectory]) -> RowLayout:
        """Return the batch's layout; the cached one if no image joined, left or changed its inputs."""
        size = self.forward_rows(batch)
        model_inputs = [image.model_inputs for image in batch]
        cached = self._last_layout
        if cached is None or cached[1].forward_rows != size or not _are_same(cached[0], model_inputs):
            self._last_layout = cached = (model_inputs, RowLayout.build(batch, size))
        return cached[1]

    def forget(self) -> None:
        """Drop the last layout, since an image has left: its pictures and their networks need memory."""
        self._last_layout = None

    def forward_rows(self, batch: Sequence[Trajectory]) -> int:
        """Return the rows of a forward: the recipe's pinned shape, or the next bucket."""
        rows = min(sum(image.rows for image in batch), self._limits.limit_for(batch[0]))
        return batch[0].bucket or next((size for size in self._buckets if size >= rows), rows)


def _are_same(inputs: Sequence[ModelInputs], other_inputs: Sequence[ModelInputs]) -> bool:
    return len(inputs) == len(other_inputs) and all(
        input_a is input_b for input_a, input_b in zip(inputs, other_inputs, strict=True)
    )
