"""Eviction policy of the model cache: which models are in memory, and which is dropped for another. Pure.

A model in use is never dropped. Sizes come from the models' files, so they are known before loading.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from engine.models.family import Family


class LoadedModels:
    """`budget` and all sizes are bytes. `families` is a live view that other threads may read."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._families: dict[str, Family] = {}
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first; includes models being loaded
        self._users: Counter[str] = Counter()
        self.families: Mapping[str, Family] = MappingProxyType(self._families)

    @property
    def used_bytes(self) -> int:
        return sum(self._sizes.values())

    def count_users(self, name: str) -> int:
        """Return how many jobs use it now."""
        return self._users[name]

    def reserve(self, name: str, size: int, protected: frozenset[str] = frozenset()) -> bool:
        """Make room for a model to load, or to change its size. Drop idle models, the least recently used first.

        Returns False, and drops nothing, where all idle models but the `protected` would not make enough room.
        """
        idle = [other for other in self._families if not self._users[other] and other not in protected | {name}]
        extra_bytes = size - self._sizes.get(name, 0)
        if self.used_bytes - sum(self._sizes[other] for other in idle) + extra_bytes > self.budget:
            return False
        for other in [each for each in self._sizes if each in idle]:
            if self.used_bytes + extra_bytes <= self.budget:
                break
            self._drop(other)
        self._sizes[name] = size
        return True

    def add(self, name: str, family: Family) -> None:
        """Add a loaded model in its reserved room."""
        self._families[name] = family
        self._sizes.move_to_end(name)

    def cancel_reservation(self, name: str) -> None:
        """Free the room of a model that will not be loaded."""
        self._sizes.pop(name, None)

    def acquire(self, name: str) -> None:
        self._users[name] += 1
        self._sizes.move_to_end(name)

    def release(self, name: str) -> None:
        self._users[name] -= 1

    def _drop(self, name: str) -> None:
        del self._families[name], self._sizes[name]
