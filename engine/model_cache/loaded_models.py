"""Eviction policy of the model cache: which models are in memory, and which is dropped for another. Pure.

A model in use is never dropped. Sizes come from the models' files, so they are known before loading.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from engine.models.family import Family

NOTHING: Mapping[str, int] = MappingProxyType({})


class _Reservation(NamedTuple):
    """Bytes of a model: its own, and of networks that it shares."""

    own: int
    shared: Mapping[str, int]


class LoadedModels:
    """`budget` and all sizes are bytes. `families` is a live view that other threads may read."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._families: dict[str, Family] = {}
        # least recently used first; includes models being loaded
        self._reserved: OrderedDict[str, _Reservation] = OrderedDict()
        self._users: Counter[str] = Counter()
        self.families: Mapping[str, Family] = MappingProxyType(self._families)

    @property
    def used_bytes(self) -> int:
        return _count_bytes(self._reserved.values())

    def count_users(self, name: str) -> int:
        """Return how many jobs use it now."""
        return self._users[name]

    def reserve(
        self, name: str, size: int, protected: frozenset[str] = frozenset(), shared: Mapping[str, int] = NOTHING
    ) -> bool:
        """Make room for a model to load, or to change its size. Drop idle models, the least recently used first.

        `shared`: the part of `size` that other models share, by a key for each network; it counts once. Returns False,
        and drops nothing, where all idle models but the `protected` would not make enough room.
        """
        idle = {other for other in self._families if not self._users[other] and other not in protected | {name}}
        wanted = self._reserved | {name: _Reservation(size - sum(shared.values()), shared)}
        if _count_bytes(each for other, each in wanted.items() if other not in idle) > self.budget:
            return False
        for other in [each for each in self._reserved if each in idle]:
            if _count_bytes(wanted.values()) <= self.budget:
                break
            del wanted[other]
            self._drop(other)
        self._reserved[name] = wanted[name]
        return True

    def add(self, name: str, family: Family) -> None:
        """Add a loaded model in its reserved room."""
        self._families[name] = family
        self._reserved.move_to_end(name)

    def cancel_reservation(self, name: str) -> None:
        """Free the room of a model that will not be loaded."""
        self._reserved.pop(name, None)

    def acquire(self, name: str) -> None:
        self._users[name] += 1
        self._reserved.move_to_end(name)

    def release(self, name: str) -> None:
        self._users[name] -= 1

    def _drop(self, name: str) -> None:
        del self._families[name], self._reserved[name]


def _count_bytes(reservations: Iterable[_Reservation]) -> int:
    """Return the bytes of models together, each shared network once."""
    own_bytes = 0
    shared = dict[str, int]()
    for reservation in reservations:
        own_bytes += reservation.own
        shared |= reservation.shared
    return own_bytes + sum(shared.values())
