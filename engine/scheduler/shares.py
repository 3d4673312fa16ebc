"""The fair-queueing tree, tier → guild → user → job; each node has a virtual time of start-time fair queueing.

A node's virtual time is its cost so far, divided by its weight. Among siblings the least goes first (Goyal, Vin and
Cheng 1997, "Start-time fair queueing", IEEE/ACM Transactions on Networking 5(5)).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from engine.job import Share

MOST_REMEMBERED = 1000  # children that left a node
_serials = count()
_NO_TIMES: Mapping[int, float] = MappingProxyType({})


class Entry(Protocol):
    """What is scheduled: one image with the inputs of its next step. Only entries of equal `key` share a batch.

    `rows` and `key` may change from step to step. `price` is milliseconds a row-step at its size, by calibration;
    without it a row-step costs 1. `times`, if set, are milliseconds of a forward by rows: see `patience.py`.
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
        self.weight = 1.0  # relative to its siblings
        self.claim = 1.0  # the part of the node's work that is in this tree
        self.part = 1.0  # the node's part of this tree's device time
        self.clock = 0.0  # the lowest time at which a new child starts
        self.gone: dict[str, float] = {}  # times of children that left: leaving cancels no debt
        self.last = -1  # the step that last served it
        # State while a batch is filled:
        self.taken = 0
        self.ahead = 0.0
        self.overdue = False
        self.queue: list[Seat[E]] = []
        self.heap: list[tuple[float, int, int, Node[E]]] = []

    def join(self, seat: Seat[E], weights: tuple[float, ...] = (1.0,) * 4) -> Node[E]:
        """Add a seat beneath this root; return its job's node. New nodes start level with the least served sibling."""
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
        """Return the virtual time among its children: the least served one's; it never decreases."""
        if self.children:
            self.clock = max(self.clock, min(child.time for child in self.children.values()))
        return self.clock

    def leave(self, seat: Seat[E]) -> None:
        """Remove the seat from this job, and every node that becomes empty."""
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
        if len(self.gone) > MOST_REMEMBERED:  # times below the clock have no effect
            self.gone = {name: time for name, time in self.gone.items() if time > self.clock}
        while len(self.gone) > MOST_REMEMBERED:
            del self.gone[next(iter(self.gone))]

    def path(self) -> Iterator[Node[E]]:
        """Yield this node and its parents up to the tier."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def beneath(self) -> Iterator[Node[E]]:
        """Yield every node below this one, parents first."""
        for child in self.children.values():
            yield child
            yield from child.beneath()


@dataclass(eq=False, slots=True)
class Seat(Generic[E]):
    """An entry's state. `job` is its node in the whole tree, `here` the one in its group, for the key of that time."""

    entry: E
    number: int  # in order of arrival
    names: tuple[str, str, str, str]
    job: Node[E]
    key: Hashable = None
    here: Node[E] | None = None
    since: int | None = None  # the step that overtook it; it goes first in the next batch
    rows: int = 0
    cost: float = 0.0
    times: Mapping[int, float] = field(default_factory=lambda: _NO_TIMES)
    chosen: bool = False

    def look(self) -> None:
        """Read what the entry's next step takes."""
        self.rows = self.entry.rows
        self.cost = self.rows * float(getattr(self.entry, "price", 1.0))
        self.times = getattr(self.entry, "times", _NO_TIMES)
