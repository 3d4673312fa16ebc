"""A queue that keeps only the newest value of each key, so a slow reader skips outdated values.

A bounded queue would drop the newest value of a slow subscriber; this one drops the oldest.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Latest(Generic[K, V]):
    """`put` never waits. `get` waits for a value and takes the key that has waited longest."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._filled = asyncio.Event()

    def put(self, key: K, value: V) -> None:
        """Replace an earlier value in place: the key keeps its turn."""
        self._values[key] = value
        self._filled.set()

    async def get(self) -> V:
        while not self._values:
            self._filled.clear()
            await self._filled.wait()
        return self._values.pop(next(iter(self._values)))

    def __len__(self) -> int:
        return len(self._values)
