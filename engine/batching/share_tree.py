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

from engine.contract import BillingKey

MAX_DEPARTED = 1000  # children that left a node
_serials = count()
_NO_TIMES: Mapping[int, float] = MappingProxyType({})


class Entry(Protocol):
    """What is scheduled: one image with the inputs of its next step. Only entries of equal `key` share a batch.

    `rows` and `key` may change from step to step. `row_ms` is the calibrated milliseconds of a row-step at its size;
    1 if there is no calibration. `forward_times` are milliseconds of a forward by rows; empty if unknown.
    """

    job: str
    billing_key: BillingKey
    k: int

    @property
    def row_ms(self) -> float: ...

    @property
    def forward_times(self) -> Mapping[int, float]: ...

    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


E = TypeVar("E", bound=Entry)


class ShareNode(Generic[E]):
    """A tier, guild, user or job (its `seats` are its images), or the root above all tiers."""

    __slots__ = (
        "children",
        "departed_times",
        "device_share",
        "heap",
        "image_count",
        "is_overtaken",
        "last_step",
        "min_start_time",
        "name",
        "parent",
        "planned_time",
        "queue",
        "seats",
        "serial",
        "served_count",
        "time",
        "weight",
        "work_share",
    )

    def __init__(self, name: str = "", parent: ShareNode[E] | None = None, time: float = 0.0) -> None:
        self.name = name
        self.parent = parent
        self.time = time
        self.serial = next(_serials)
        self.children: dict[str, ShareNode[E]] = {}
        self.seats: list[Seat[E]] = []
        self.image_count = 0  # images beneath
        self.weight = 1.0  # relative to its siblings
        self.work_share = 1.0  # the part of the node's work that is in this tree
        self.device_share = 1.0  # the node's part of this tree's device time
        self.min_start_time = 0.0  # the lowest time at which a new child starts
        self.departed_times: dict[str, float] = {}  # times of children that left: leaving cancels no debt
        self.last_step = -1  # the step that last served it
        # State while a batch is filled:
        self.served_count = 0
        self.planned_time = 0.0
        self.is_overtaken = False
        self.queue: list[Seat[E]] = []
        self.heap: list[tuple[float, int, int, ShareNode[E]]] = []

    def add_seat(self, seat: Seat[E], weights: tuple[float, ...] = (1.0,) * 4) -> ShareNode[E]:
        """Add a seat beneath this root; return its job's node. New nodes start level with the least served sibling."""
        node = self
        node.image_count += 1
        for name, weight in zip(seat.account_path, weights, strict=True):
            node = node.children.get(name) or node._add_child(name)
            node.weight = weight
            node.image_count += 1
        node.seats.append(seat)
        return node

    def _add_child(self, name: str) -> ShareNode[E]:
        child = self.children[name] = ShareNode(
            name, self, max(self.virtual_time(), self.departed_times.pop(name, 0.0))
        )
        return child

    def virtual_time(self) -> float:
        """Return the virtual time among its children: the least served one's; it never decreases."""
        if self.children:
            self.min_start_time = max(self.min_start_time, min(child.time for child in self.children.values()))
        return self.min_start_time

    def remove_seat(self, seat: Seat[E]) -> None:
        """Remove the seat from this job, and every node that becomes empty."""
        self.seats.remove(seat)
        node = self
        while (parent := node.parent) is not None:
            node.image_count -= 1
            if not node.image_count:
                parent.virtual_time()
                del parent.children[node.name]
                parent._remember_departed(node)
            node = parent
        node.image_count -= 1

    def _remember_departed(self, child: ShareNode[E]) -> None:
        if child.time > self.min_start_time:
            self.departed_times[child.name] = child.time
        if len(self.departed_times) > MAX_DEPARTED:  # times below the clock have no effect
            self.departed_times = {
                name: time for name, time in self.departed_times.items() if time > self.min_start_time
            }
        while len(self.departed_times) > MAX_DEPARTED:
            del self.departed_times[next(iter(self.departed_times))]

    def path(self) -> Iterator[ShareNode[E]]:
        """Yield this node and its parents up to the tier."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def descendants(self) -> Iterator[ShareNode[E]]:
        """Yield every node below this one, parents first."""
        for child in self.children.values():
            yield child
            yield from child.descendants()


@dataclass(eq=False, slots=True)
class Seat(Generic[E]):
    """An entry's state. `job_node` is its node in the whole tree, `group_node` the one in the group of its `key`."""

    entry: E
    number: int  # in order of arrival
    account_path: tuple[str, str, str, str]
    job_node: ShareNode[E]
    key: Hashable = None
    group_node: ShareNode[E] | None = None
    overtaken_at: int | None = None  # the step that overtook it; it goes first in the next batch
    rows: int = 0
    cost: float = 0.0
    forward_times: Mapping[int, float] = field(default_factory=lambda: _NO_TIMES)
    is_chosen: bool = False

    def refresh(self) -> None:
        """Read what the entry's next step takes."""
        self.rows = self.entry.rows
        self.cost = self.rows * self.entry.row_ms
        self.forward_times = self.entry.forward_times
