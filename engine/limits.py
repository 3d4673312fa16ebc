"""Batch limits: the worker's or model's limit, lower where memory ran out, higher where a batch shape is pinned."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

MOST_KNOWN = 1000


class Image(Protocol):
    """An image that is scheduled: only those of equal `key` share a batch; `bucket` is its pinned batch shape."""

    model: str

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def bucket(self) -> int | None: ...


class Limits:
    """`known` holds the limit of every key that was looked up. The default is `rows`, or the model's own limit."""

    def __init__(self, rows: int, caps: Mapping[str, int] = MappingProxyType({})) -> None:
        self.rows, self._caps = rows, dict(caps)
        self._halved: dict[Hashable, int] = {}
        self.known: dict[Hashable, int] = {}

    def of(self, image: Image) -> int:
        """Return the batch limit of an image's key. A pinned forward costs its whole bucket, so a batch may fill it."""
        key = image.key
        if key not in self.known and len(self.known) >= MOST_KNOWN:
            self._forget()
        most = max(self._caps.get(image.model, self.rows), image.bucket or 0)
        return self.known.setdefault(key, min(most, self._halved.get(key, most)))

    def adjust(self, model: str, rows: int) -> None:
        """Set a model's limit from now on; where memory ran out, it stays at what fitted, or less."""
        if self._caps.get(model) != rows:
            self._caps[model] = rows
            self.known.clear()

    def _forget(self) -> None:
        self.known.clear()
        self._halved.clear()

    def halve(self, batch: Sequence[Image]) -> int | None:
        """Return the halved limit after a batch ran out of memory; None if it cannot be smaller."""
        limit = self.of(batch[0])
        if batch[0].bucket is not None or limit == 1:
            return None
        halved = max(1, min(limit, sum(image.rows for image in batch)) // 2)
        self.known[batch[0].key] = self._halved[batch[0].key] = halved
        return halved
