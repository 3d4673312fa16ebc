"""Batch limits: the worker's or model's limit, lower where memory ran out, higher where a batch shape is pinned."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

MAX_KEYS = 1000


class LimitedImage(Protocol):
    """An image that is scheduled: only those of equal `key` share a batch; `bucket` is its pinned batch shape."""

    model: str

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def bucket(self) -> int | None: ...


class BatchLimits:
    """The batch limit of each key. The default is `default_limit`, or the model's own limit."""

    def __init__(self, default_limit: int, model_limits: Mapping[str, int] = MappingProxyType({})) -> None:
        self.default_limit = default_limit
        self._model_limits = dict(model_limits)
        self._halved_limits: dict[Hashable, int] = {}
        self.limits: dict[Hashable, int] = {}

    def limit_for(self, image: LimitedImage) -> int:
        """Return the batch limit of an image's key. A pinned forward costs its whole bucket, so a batch may fill it."""
        key = image.key
        if key not in self.limits and len(self.limits) >= MAX_KEYS:
            self._clear()
        limit = max(self._model_limits.get(image.model, self.default_limit), image.bucket or 0)
        return self.limits.setdefault(key, min(limit, self._halved_limits.get(key, limit)))

    def set_model_limit(self, model: str, limit: int) -> None:
        """Set a model's limit from now on; where memory ran out, it stays at what fitted, or less."""
        if self._model_limits.get(model) != limit:
            self._model_limits[model] = limit
            self.limits.clear()

    def _clear(self) -> None:
        self.limits.clear()
        self._halved_limits.clear()

    def halve(self, batch: Sequence[LimitedImage]) -> int | None:
        """Return the halved limit after a batch ran out of memory; None if it cannot be smaller."""
        limit = self.limit_for(batch[0])
        if batch[0].bucket is not None or limit == 1:
            return None
        lower = max(1, min(limit, sum(image.rows for image in batch)) // 2)
        self.limits[batch[0].key] = self._halved_limits[batch[0].key] = lower
        return lower
