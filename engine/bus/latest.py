"""A queue that keeps only the newest value of each key, so a slow reader skips outdated values.

A bounded queue would drop the newest value of a slow subscriber; this one drops the oldest.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LatestByKey(Generic[K, V]):
    """`put` never waits. `get` waits for a value and takes the key that has waited longest."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._has_values = asyncio.Event()

    def put(self, key: K, value: V) -> None:
        """Replace an earlier value in place: the key keeps its turn."""
        self._values[key] = value
        self._has_values.set()

    def put_first(self, key: K, value: V) -> None:
        """Replace an earlier value, and give the key the next turn."""
        self._values = {key: value} | {other: kept for other, kept in self._values.items() if other != key}
        self._has_values.set()

    async def get(self) -> V:
        while not self._values:
            self._has_values.clear()
            await self._has_values.wait()
        return self._values.pop(next(iter(self._values)))

    def __len__(self) -> int:
        return len(self._values)
