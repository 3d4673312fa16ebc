"""How many rows a batch may have: the worker's cap, less where memory has run out, more where a shape is pinned.

Knows keys and rows; nothing of networks, nor of who is in a batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

MOST_KNOWN = 1000


class Image(Protocol):
    """What is asked of an image: only those of equal `key` share a batch, and `bucket` is its pinned shape."""

    model: str

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def bucket(self) -> int | None: ...


class Limits:
    """`known` holds the limit of every key that was asked for; of others it is `rows`, or its model's own cap."""

    def __init__(self, rows: int, caps: Mapping[str, int] = MappingProxyType({})) -> None:
        self.rows, self._caps = rows, dict(caps)
        self._halved: dict[Hashable, int] = {}
        self.known: dict[Hashable, int] = {}

    def of(self, image: Image) -> int:
        """Rows of a batch of its like. A pinned forward costs its whole bucket, so a batch may fill that."""
        key = image.key
        if key not in self.known and len(self.known) >= MOST_KNOWN:
            self._forget()
        most = max(self._caps.get(image.model, self.rows), image.bucket or 0)
        return self.known.setdefault(key, min(most, self._halved.get(key, most)))

    def adjust(self, model: str, rows: int) -> None:
        """From now on a model has this cap; where memory ran out, it stays at what fitted, or less."""
        if self._caps.get(model) != rows:
            self._caps[model] = rows
            self.known.clear()

    def _forget(self) -> None:
        self.known.clear()
        self._halved.clear()

    def halve(self, batch: Sequence[Image]) -> int | None:
        """The limit of their like after a forward of this batch found no room; None where it cannot be smaller."""
        limit = self.of(batch[0])
        if batch[0].bucket is not None or limit == 1:
            return None
        halved = max(1, min(limit, sum(image.rows for image in batch)) // 2)
        self.known[batch[0].key] = self._halved[batch[0].key] = halved
        return halved
