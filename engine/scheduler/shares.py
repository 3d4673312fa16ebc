"""The tree of those who share: tier → guild → user → job, each with the virtual time of start-time fair queueing.

A node's virtual time is the cost that it had, divided by its weight; among siblings the least goes first (Goyal, Vin
and Cheng 1997, "Start-time fair queueing", IEEE/ACM Transactions on Networking 5(5)). Knows neither groups nor batches.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from engine.job import Share

MOST_REMEMBERED = 1000  # of a node's children that left
_serials = count()
_NO_TIMES: Mapping[int, float] = MappingProxyType({})


class Entry(Protocol):
    """What is scheduled: one image, and what it asks for in its next step. Only entries of equal `key` share a batch.

    `rows` and `key` may change from step to step. An entry with a `price` (milliseconds a row-step at its size, by
    calibration) is charged by it; without one a row-step costs 1. `times`, where it has them, are milliseconds of a
    forward by rows: see `patience.py`.
    """

    job: str
    share: Share
    k: int

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


E = TypeVar("E", bound=Entry)


class Node(Generic[E]):
    """A tier, guild, user or job (its `seats` are its images), or the root above all tiers."""

    __slots__ = (
        "ahead", "children", "claim", "clock", "gone", "heap", "last", "name", "overdue", "parent", "part", "queue",
        "seats", "serial", "size", "taken", "time", "weight",
    )  # fmt: skip

    def __init__(self, name: str = "", parent: Node[E] | None = None, time: float = 0.0) -> None:
        self.name, self.parent, self.time = name, parent, time
        self.serial = next(_serials)
        self.children: dict[str, Node[E]] = {}
        self.seats: list[Seat[E]] = []
        self.size = 0  # images beneath
        self.weight = 1.0  # beside its siblings
        self.claim = 1.0  # the part of the node's work that is in this tree
        self.part = 1.0  # of this tree's device time, what belongs to the node
        self.clock = 0.0  # where a newcomer among its children starts, at the least
        self.gone: dict[str, float] = {}  # the times of children that left, so that leaving forgives nothing
        self.last = -1  # the step in which it was last served
        # What filling a batch writes down:
        self.taken = 0
        self.ahead = 0.0
        self.overdue = False
        self.queue: list[Seat[E]] = []
        self.heap: list[tuple[float, int, int, Node[E]]] = []

    def join(self, seat: Seat[E], weights: tuple[float, ...] = (1.0,) * 4) -> Node[E]:
        """A seat beneath this root; its job's node. Who was not here starts level with the least served."""
        node = self
        node.size += 1
        for name, weight in zip(seat.names, weights, strict=True):
            node = node.children.get(name) or node._admit(name)
            node.weight = weight
            node.size += 1
        node.seats.append(seat)
        return node

    def _admit(self, name: str) -> Node[E]:
        child = self.children[name] = Node(name, self, max(self.now(), self.gone.pop(name, 0.0)))
        return child

    def now(self) -> float:
        """The time among its children: that of the least served, and it never runs backwards."""
        if self.children:
            self.clock = max(self.clock, min(child.time for child in self.children.values()))
        return self.clock

    def leave(self, seat: Seat[E]) -> None:
        """Of a job: the seat goes, and whoever is left with nothing."""
        self.seats.remove(seat)
        node = self
        while (parent := node.parent) is not None:
            node.size -= 1
            if not node.size:
                parent.now()
                del parent.children[node.name]
                parent._remember(node)
            node = parent
        node.size -= 1

    def _remember(self, child: Node[E]) -> None:
        if child.time > self.clock:
            self.gone[child.name] = child.time
        if len(self.gone) > MOST_REMEMBERED:  # behind the clock it makes no difference
            self.gone = {name: time for name, time in self.gone.items() if time > self.clock}
        while len(self.gone) > MOST_REMEMBERED:
            del self.gone[next(iter(self.gone))]

    def path(self) -> Iterator[Node[E]]:
        """From this node up to the tier."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def beneath(self) -> Iterator[Node[E]]:
        """Every node below this one, parents first."""
        for child in self.children.values():
            yield child
            yield from child.beneath()


@dataclass(eq=False, slots=True)
class Seat(Generic[E]):
    """An entry's place. `job` is its node in the whole tree, `here` the one in its group's, for the key it had then."""

    entry: E
    number: int  # in order of arrival
    names: tuple[str, str, str, str]
    job: Node[E]
    key: Hashable = None
    here: Node[E] | None = None
    since: int | None = None  # the step in which it was passed over; it goes first in the next batch
    rows: int = 0
    cost: float = 0.0
    times: Mapping[int, float] = field(default_factory=lambda: _NO_TIMES)
    chosen: bool = False

    def look(self) -> None:
        """What it asks for now."""
        self.rows = self.entry.rows
        self.cost = self.rows * float(getattr(self.entry, "price", 1.0))
        self.times = getattr(self.entry, "times", _NO_TIMES)
