"""A group: the entries of one key, which may share a batch, and the choice of its next batch.

Within a group the order is start-time fair queueing by cost. Each pick takes the least served tier, in it the least
served guild, user and job; a job's images go by step. A node's `work_share` is the part of its work that is in this
group. A node's virtual time is its cost so far, divided by its weight; among siblings the least goes first (Goyal, Vin
and Cheng 1997, "Start-time fair queueing", IEEE/ACM Transactions on Networking 5(5)).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import count
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from engine.contract import BillingKey

MAX_OVERTAKEN_STEPS = 8  # steps for which new jobs may delay an overtaken image
MIN_THROUGHPUT_SHARE = 0.85  # share of a full batch's rows a second that is kept
MAX_DEPARTED = 1000  # children that left a node
_serials = count()
ForwardTimes = Mapping[int, float]  # milliseconds of a forward by rows
_NO_TIMES: ForwardTimes = MappingProxyType({})


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


@dataclass(eq=False, slots=True)
class ShareNode(Generic[E]):
    """A tier, guild, user or job (its `seats` are its images), or the root above all tiers."""

    name: str = ""
    parent: ShareNode[E] | None = None
    time: float = 0.0
    serial: int = field(default_factory=_serials.__next__)
    children: dict[str, ShareNode[E]] = field(default_factory=dict[str, "ShareNode[E]"])
    seats: list[Seat[E]] = field(default_factory=list["Seat[E]"])
    image_count: int = 0  # images beneath
    weight: float = 1.0  # relative to its siblings
    work_share: float = 1.0  # the part of the node's work that is in this tree
    device_share: float = 1.0  # the node's part of this tree's device time
    min_start_time: float = 0.0  # the lowest time at which a new child starts
    departed_times: dict[str, float] = field(default_factory=dict[str, float])  # leaving cancels no debt
    last_step: int = -1  # the step that last served it
    # State while a batch is filled:
    served_count: int = 0
    planned_time: float = 0.0
    is_overtaken: bool = False
    queue: list[Seat[E]] = field(default_factory=list["Seat[E]"])
    heap: list[tuple[float, int, int, ShareNode[E]]] = field(
        default_factory=list[tuple[float, int, int, "ShareNode[E]"]]
    )

    def add_seat(self, seat: Seat[E], weights: tuple[float, ...] = (1.0,) * 4) -> ShareNode[E]:
        """Add a seat beneath this root; return its job's node. New nodes start level with the least served sibling."""
        node = self
        node.image_count += 1
        for name, weight in zip((*seat.user, seat.job), weights, strict=True):
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
    user: tuple[str, str, str]  # tier, guild, user
    job: str
    job_node: ShareNode[E]
    group_node: ShareNode[E] = field(init=False)
    key: Hashable = None
    overtaken_at: int | None = None  # the step that overtook it; it goes first in the next batch
    rows: int = 0
    cost: float = 0.0
    forward_times: ForwardTimes = field(default_factory=lambda: _NO_TIMES)
    is_chosen: bool = False

    @property
    def user_node(self) -> ShareNode[E]:
        """Its user's node in the group."""
        assert self.group_node.parent is not None
        return self.group_node.parent

    def refresh(self) -> None:
        """Read what the entry's next step takes."""
        self.rows = self.entry.rows
        self.cost = self.rows * self.entry.row_ms
        self.forward_times = self.entry.forward_times


class Group(Generic[E]):
    """`unserved_jobs`: jobs that were never served; serving one removes it.

    `rates`: (node of the whole tree, virtual milliseconds charged per device-millisecond of this group).
    """

    def __init__(self, key: Hashable, unserved_jobs: set[str]) -> None:
        self.key = key
        self._unserved_jobs = unserved_jobs
        self.group_root: ShareNode[E] = ShareNode()
        self.seats: dict[int, Seat[E]] = {}  # by number
        self.rates: list[tuple[ShareNode[E], float]] = []
        self.nodes: list[ShareNode[E]] = []  # of its tree
        self.overtaken: list[Seat[E]] = []  # seats that the proposed batch overtakes
        self.highest_cost = 0.0  # the cost of the most expensive batch so far
        self._step_time_limiter = StepTimeLimiter()

    def join(self, seat: Seat[E]) -> None:
        seat.key, seat.group_node, seat.overtaken_at = self.key, self.group_root.add_seat(seat), None
        self.seats[seat.number] = seat

    def leave(self, seat: Seat[E]) -> None:
        seat.group_node.remove_seat(seat)
        del self.seats[seat.number]

    def update_shares(self, tree_root: ShareNode[E]) -> None:
        """Recompute work shares and rates, after an entry joined, left, paused or changed its weight."""
        self.nodes = list(self.group_root.descendants())
        self.rates = []
        self._set_work_share(self.group_root, tree_root)
        self._set_rates(self.group_root, tree_root, 1.0)

    def _set_work_share(self, node: ShareNode[E], tree_node: ShareNode[E]) -> float:
        """Return the part of the node's share in this group: for a job with three of four images here, 3/4."""
        node.weight = tree_node.weight
        if node.seats:
            node.work_share = len(node.seats) / len(tree_node.seats)
        else:
            total_weight = sum(child.weight for child in tree_node.children.values())
            child_pairs = [(child, tree_node.children[child.name]) for child in node.children.values()]
            node.work_share = (
                sum(tree_child.weight * self._set_work_share(child, tree_child) for child, tree_child in child_pairs)
                / total_weight
            )
        return node.work_share

    def _set_rates(self, node: ShareNode[E], tree_node: ShareNode[E], node_share: float) -> None:
        total_weight = sum(child.weight * child.work_share for child in node.children.values())
        for child in node.children.values():
            tree_child = tree_node.children[child.name]
            child_share = node_share * child.weight * child.work_share / total_weight
            child.device_share = child_share
            self.rates.append((tree_child, child_share / child.weight))
            self._set_rates(child, tree_child, child_share)

    def choose_batch(self, limit: int, step: int) -> list[Seat[E]]:
        """Return the next batch, in order of arrival; a single wider seat runs alone. Changes no times."""
        self.overtaken = []
        seats = list(self.seats.values())
        rows = 0
        for seat in seats:
            seat.refresh()
            seat.is_chosen = False
            rows += seat.rows
        if seats:
            limit = self._step_time_limiter.limit_rows(self._user_demands(seats), limit, seats[0].forward_times)
        if rows <= limit:
            return seats
        return sorted(self._fill_fairly(limit, step), key=lambda seat: seat.number)

    def _user_demands(self, seats: list[Seat[E]]) -> list[Demand]:
        """Return the rows that each user has now."""
        rows: dict[tuple[str, ...], int] = {}
        device_shares: dict[tuple[str, ...], float] = {}
        for seat in seats:
            rows[seat.user] = rows.get(seat.user, 0) + seat.rows
            device_shares[seat.user] = seat.user_node.device_share
        return [Demand(user, rows[user], device_shares[user]) for user in rows]

    def _fill_fairly(self, limit: int, step: int) -> list[Seat[E]]:
        for node in self.nodes:
            node.planned_time = node.time
            node.is_overtaken = False
        batch: list[Seat[E]] = []
        for seat in self._leading_seats(step):
            if not batch or seat.rows <= limit:
                _add_to_batch(seat, batch)
                limit -= seat.rows
        _build_heaps(self.group_root)
        too_wide: list[Seat[E]] = []
        while limit > 0 and self.group_root.heap:
            node = self.group_root
            while not node.queue:
                node = node.heap[0][3]
            seat = node.queue.pop()
            if batch and seat.rows > limit:
                too_wide.append(seat)
            else:
                _add_to_batch(seat, batch)
                limit -= seat.rows
                self._mark_overtaken(too_wide)
            _update_heaps(node)
        return batch

    def _mark_overtaken(self, too_wide: list[Seat[E]]) -> None:
        """Mark seats that are too wide for the remaining rows as overtaken.

        The first such seat of each user leads the next batch.
        """
        for seat in too_wide:
            if not seat.user_node.is_overtaken:
                seat.user_node.is_overtaken = True
                self.overtaken.append(seat)
        too_wide.clear()

    def _leading_seats(self, step: int) -> list[Seat[E]]:
        """Return the seats before the fair order: long overtaken seats, then new jobs, then other overtaken seats."""
        overtaken = sorted((seat for seat in self.seats.values() if seat.overtaken_at is not None), key=_by_overtaking)
        long_overtaken = [seat for seat in overtaken if _by_overtaking(seat) + MAX_OVERTAKEN_STEPS < step]
        newcomers: dict[tuple[str, ...], Seat[E]] = {}  # one of each user
        for seat in self.seats.values():
            if seat.job in self._unserved_jobs and seat.user not in newcomers and self._can_lead(seat):
                newcomers[seat.user] = seat
        leading = {seat.number: seat for seat in (*long_overtaken, *newcomers.values(), *overtaken)}
        return list(leading.values())

    def _can_lead(self, seat: Seat[E]) -> bool:
        """Return whether a new job's seat may lead the batch: no owner level is more than one batch ahead.

        So splitting work into many one-step jobs gains nothing.
        """
        owners = [*seat.group_node.path()][1:]
        leads = ((node, node.time - node.parent.virtual_time()) for node in owners if node.parent is not None)
        return all(lead * node.weight * node.work_share <= self.highest_cost for node, lead in leads)

    def charge(self, served: list[Seat[E]], costs: list[float], step: int) -> None:
        """Charge the served seats."""
        self.highest_cost = max(self.highest_cost, sum(costs))
        self._step_time_limiter.charge(_rows_by_user(served))
        self.group_root.served_count = 0
        for node in self.nodes:
            node.served_count = 0
        for seat, cost in zip(served, costs, strict=True):
            seat.overtaken_at = None
            self._unserved_jobs.discard(seat.job)
            for node in seat.group_node.path():
                node.time += cost / (node.weight * node.work_share)
                node.served_count += 1
                node.last_step = step
        for parent in {node.parent for seat in served for node in seat.group_node.path()}:
            assert parent is not None
            _catch_up_served(parent)
        for seat in self.overtaken:
            if seat.overtaken_at is None and seat.number in self.seats:
                seat.overtaken_at = step
        self.overtaken = []


def _rows_by_user(seats: list[Seat[E]]) -> dict[Hashable, int]:
    rows: dict[Hashable, int] = {}
    for seat in seats:
        rows[seat.user] = rows.get(seat.user, 0) + seat.rows
    return rows


def _add_to_batch(seat: Seat[E], batch: list[Seat[E]]) -> None:
    seat.is_chosen = True
    batch.append(seat)
    for node in seat.group_node.path():
        node.planned_time += seat.cost / (node.weight * node.work_share)


def _build_heaps(node: ShareNode[E]) -> bool:
    """Build the queues and heaps, the least served first. Return whether any unchosen seat is beneath."""
    if node.seats:
        node.queue = [seat for seat in node.seats if not seat.is_chosen]
        if len(node.queue) > 1:
            node.queue.sort(key=_by_progress)
        return bool(node.queue)
    node.heap = [
        (child.planned_time, child.last_step, child.serial, child)
        for child in node.children.values()
        if _build_heaps(child)
    ]
    heapify(node.heap)
    return bool(node.heap)


def _update_heaps(job: ShareNode[E]) -> None:
    """Update the heaps above a job that was on top of each: its time or its queue has changed."""
    node = job
    has_more = bool(job.queue)
    while (parent := node.parent) is not None:
        if has_more:
            heapreplace(parent.heap, (node.planned_time, node.last_step, node.serial, node))
        else:
            heappop(parent.heap)
        node = parent
        has_more = bool(parent.heap)


def _catch_up_served(parent: ShareNode[E]) -> None:
    """Keep fully served nodes from saving credit.

    If all of a node's images were in the batch, lift its virtual time to that of its least served sibling with images
    left out.
    """
    children = parent.children.values()
    waiting = [child.time for child in children if child.served_count < child.image_count]
    least_time = min(waiting) if waiting else max(child.time for child in children)
    for child in children:
        if child.served_count == child.image_count and child.time < least_time:
            child.time = least_time


def _by_progress(seat: Seat[E]) -> tuple[int, int]:
    return -seat.entry.k, -seat.number


def _by_overtaking(seat: Seat[E]) -> int:
    return -1 if seat.overtaken_at is None else seat.overtaken_at


@dataclass(frozen=True)
class Demand:
    """The rows of one user in a group, and that user's share of the group's device time."""

    user: Hashable
    rows: int
    share: float


class StepTimeLimiter:
    """The state of one group. `limit_rows` proposes a limit; `charge` counts the rows that have run."""

    def __init__(self) -> None:
        self._saved_ms: dict[Hashable, float] = {}  # milliseconds; negative: a debt
        self._step_budgets: dict[Hashable, tuple[int, float]] = {}  # (rows, milliseconds) of the last proposal
        self._forward_times: ForwardTimes = {}
        self._full_batch_ms = 0.0

    def limit_rows(self, demands: Sequence[Demand], limit: int, forward_times: ForwardTimes) -> int:
        """Return the most rows of the next batch, at most `limit`."""
        self._step_budgets = {}
        self._forward_times = forward_times
        if len(demands) < 2 or not forward_times:
            return limit
        full_rows = min(limit, sum(demand.rows for demand in demands))
        self._full_batch_ms = forward_ms(forward_times, full_rows)
        self._step_budgets = {
            each.user: (min(each.rows, full_rows), forward_ms(forward_times, min(each.rows, full_rows)) / each.share)
            for each in demands
        }
        limited_users = {
            user for user, (_, allowance) in self._step_budgets.items() if allowance < self._full_batch_ms * (1 - 1e-9)
        }
        if not limited_users:
            return limit
        min_rows = 1 + sum(self._step_budgets[user][0] for user in limited_users)
        sizes = efficient_sizes(forward_times, min_rows, full_rows)
        efficient_time = efficient_ms(forward_times, sizes)
        for user in limited_users:
            rows, allowance = self._step_budgets[user]
            self._step_budgets[user] = rows, max(allowance, efficient_time)
        available_ms = min(self._step_budgets[user][1] + self._saved_ms.get(user, 0.0) for user in limited_users)
        return max((size for size in sizes if forward_ms(forward_times, size) <= available_ms), default=sizes[0])

    def charge(self, rows: Mapping[Hashable, int]) -> None:
        """Account for the rows of each user that ran in one batch."""
        batch_ms = forward_ms(self._forward_times, sum(rows.values())) if self._step_budgets else 0.0
        balances: dict[Hashable, float] = {}
        for user, (user_rows, allowance) in self._step_budgets.items():
            balance = self._saved_ms.get(user, 0.0) + allowance * rows.get(user, 0) / user_rows - batch_ms
            balances[user] = max(-self._full_batch_ms, min(self._full_batch_ms, balance))
        self._saved_ms = balances
        self._step_budgets = {}


def forward_ms(forward_times: ForwardTimes, rows: int) -> float:
    """Return the milliseconds for these rows: of the next timed size; beyond the largest, of several forwards."""
    largest = max(forward_times)
    full_forwards, rest_rows = divmod(rows, largest)
    return full_forwards * forward_times[largest] + (
        forward_times[min(size for size in forward_times if size >= rest_rows)] if rest_rows else 0.0
    )


def efficient_sizes(forward_times: ForwardTimes, min_rows: int, max_rows: int) -> list[int]:
    """Return the sizes from at least `min_rows` rows to `max_rows` that no mixture of two others beats."""
    sizes = sorted({min(size, max_rows) for size in forward_times if size >= min_rows} | {max_rows})
    hull: list[int] = []
    for size in sizes:
        while len(hull) > 1 and _marginal_throughput(forward_times, hull[-2], hull[-1]) <= _marginal_throughput(
            forward_times, hull[-1], size
        ):
            hull.pop()
        hull.append(size)
    return hull


def efficient_ms(forward_times: ForwardTimes, sizes: Sequence[int]) -> float:
    """Return the shortest mean time of mixed efficient sizes.

    They must give at least `MIN_THROUGHPUT_SHARE` of the largest size's rows a millisecond.
    """
    min_throughput = MIN_THROUGHPUT_SHARE * sizes[-1] / forward_ms(forward_times, sizes[-1])
    smaller_size = sizes[0]
    for larger_size in sizes[1:]:
        if smaller_size / forward_ms(forward_times, smaller_size) >= min_throughput:
            break
        if larger_size / forward_ms(forward_times, larger_size) >= min_throughput:
            marginal = _marginal_throughput(forward_times, smaller_size, larger_size)
            return (marginal * forward_ms(forward_times, smaller_size) - smaller_size) / (marginal - min_throughput)
        smaller_size = larger_size
    return forward_ms(forward_times, smaller_size)


def _marginal_throughput(forward_times: ForwardTimes, few: int, many: int) -> float:
    """Return rows a millisecond that the larger batch adds."""
    return (many - few) / max(forward_ms(forward_times, many) - forward_ms(forward_times, few), 1e-9)
