"""A group: the entries of one key, which may share a batch, and the choice of its next batch.

Within a group the order is start-time fair queueing by cost. Each pick takes the least served tier, in it the least
served guild, user and job; a job's images go by step. `claim` is the part of a node's work that is in this group.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heapreplace
from typing import Generic

from engine.scheduler.patience import Demand, Patience
from engine.scheduler.shares import E, Node, Seat

PATIENCE = 8  # steps for which new jobs may delay an overtaken image


class Group(Generic[E]):
    """`newcomers`: jobs that were never served; serving one removes it.

    `rates`: what a device-millisecond of this group adds to the time of each node of the whole tree.
    """

    def __init__(self, key: Hashable, newcomers: set[str]) -> None:
        self.key, self._newcomers = key, newcomers
        self.root: Node[E] = Node()
        self.seats: dict[int, Seat[E]] = {}  # by number
        self.rates: list[tuple[Node[E], float]] = []
        self.nodes: list[Node[E]] = []  # of its tree
        self.passed: list[Seat[E]] = []  # seats that the proposed batch overtakes
        self.fullest = 0.0  # the cost of the most expensive batch so far
        self._patience = Patience()

    def join(self, seat: Seat[E]) -> None:
        seat.key, seat.here, seat.since = self.key, self.root.join(seat), None
        self.seats[seat.number] = seat

    def leave(self, seat: Seat[E]) -> None:
        assert seat.here is not None
        seat.here.leave(seat)
        del self.seats[seat.number]

    def lay_claims(self, whole: Node[E]) -> None:
        """Recompute claims and rates, after an entry joined, left, paused or changed its weight."""
        self.nodes, self.rates = list(self.root.beneath()), []
        self._claim(self.root, whole)
        self._rate(self.root, whole, 1.0)

    def _claim(self, node: Node[E], whole: Node[E]) -> float:
        """Return the part of the node's share in this group: for a job with three of four images here, 3/4."""
        node.weight = whole.weight
        if node.seats:
            node.claim = len(node.seats) / len(whole.seats)
        else:
            total = sum(child.weight for child in whole.children.values())
            mine = [(child, whole.children[child.name]) for child in node.children.values()]
            node.claim = sum(above.weight * self._claim(child, above) for child, above in mine) / total
        return node.claim

    def _rate(self, node: Node[E], whole: Node[E], part: float) -> None:
        total = sum(child.weight * child.claim for child in node.children.values())
        for child in node.children.values():
            above, share = whole.children[child.name], part * child.weight * child.claim / total
            child.part = share
            self.rates.append((above, share / child.weight))
            self._rate(child, above, share)

    def fill(self, limit: int, step: int) -> list[Seat[E]]:
        """Return the next batch, in order of arrival; a single wider seat runs alone. Changes no times."""
        self.passed = []
        seats = list(self.seats.values())
        rows = 0
        for seat in seats:
            seat.look()
            seat.chosen = False
            rows += seat.rows
        limit = self._patience.bound(self._demands(seats), limit, seats[0].times) if seats else limit
        if rows <= limit:
            return seats
        return sorted(self._fill(limit, step), key=_number)

    def _demands(self, seats: list[Seat[E]]) -> list[Demand]:
        """Return the rows that each user has now."""
        rows: dict[tuple[str, ...], int] = {}
        parts: dict[tuple[str, ...], float] = {}
        for seat in seats:
            assert seat.here is not None
            assert seat.here.parent is not None
            user = seat.names[:3]
            rows[user], parts[user] = rows.get(user, 0) + seat.rows, seat.here.parent.part
        return [Demand(user, rows[user], parts[user]) for user in rows]

    def _fill(self, limit: int, step: int) -> list[Seat[E]]:
        for node in self.nodes:
            node.ahead, node.overdue = node.time, False
        batch: list[Seat[E]] = []
        for seat in self._first(step):
            if not batch or seat.rows <= limit:
                _take(seat, batch)
                limit -= seat.rows
        _queue(self.root)
        late: list[Seat[E]] = []
        while limit > 0 and self.root.heap:
            job = self.root
            while not job.queue:
                job = job.heap[0][3]
            seat = job.queue.pop()
            if batch and seat.rows > limit:
                late.append(seat)
            else:
                _take(seat, batch)
                limit -= seat.rows
                self._pass(late)
            _reorder(job)
        return batch

    def _pass(self, late: list[Seat[E]]) -> None:
        """Note that seats too wide for the remaining rows were overtaken; each user's first goes first next time."""
        for seat in late:
            assert seat.here is not None
            assert seat.here.parent is not None
            if not seat.here.parent.overdue:
                seat.here.parent.overdue = True
                self.passed.append(seat)
        late.clear()

    def _first(self, step: int) -> list[Seat[E]]:
        """Return the seats before the fair order: new jobs, then overtaken seats; long overtaken ones come first of
        all.
        """
        overdue = sorted((seat for seat in self.seats.values() if seat.since is not None), key=_since)
        old = [seat for seat in overdue if _since(seat) + PATIENCE < step]
        new: dict[tuple[str, ...], Seat[E]] = {}  # one of each user
        for seat in self.seats.values():
            if seat.names[3] in self._newcomers and seat.names[:3] not in new and self._may_lead(seat):
                new[seat.names[:3]] = seat
        order = {seat.number: seat for seat in (*old, *new.values(), *overdue)}
        return list(order.values())

    def _may_lead(self, seat: Seat[E]) -> bool:
        """A new job goes first unless its owner is more than a batch ahead; so many one-step jobs gain nothing."""
        assert seat.here is not None
        owners = [*seat.here.path()][1:]
        return all(
            node.parent is None or (node.time - node.parent.now()) * node.weight * node.claim <= self.fullest
            for node in owners
        )

    def charge(self, ran: list[Seat[E]], costs: list[float], step: int) -> None:
        """Charge the served seats."""
        self.fullest = max(self.fullest, sum(costs))
        self._patience.charge(_rows_by_user(ran))
        self.root.taken = 0
        for node in self.nodes:
            node.taken = 0
        for seat, cost in zip(ran, costs, strict=True):
            assert seat.here is not None
            seat.since = None
            self._newcomers.discard(seat.names[3])
            for node in seat.here.path():
                node.time += cost / (node.weight * node.claim)
                node.taken += 1
                node.last = step
        for parent in {node.parent for seat in ran if seat.here for node in seat.here.path()}:
            assert parent is not None
            _level(parent)
        for seat in self.passed:
            if seat.since is None and seat.number in self.seats:
                seat.since = step
        self.passed = []


def _rows_by_user(seats: list[Seat[E]]) -> dict[Hashable, int]:
    rows: dict[Hashable, int] = {}
    for seat in seats:
        rows[seat.names[:3]] = rows.get(seat.names[:3], 0) + seat.rows
    return rows


def _take(seat: Seat[E], batch: list[Seat[E]]) -> None:
    assert seat.here is not None
    seat.chosen = True
    batch.append(seat)
    for node in seat.here.path():
        node.ahead += seat.cost / (node.weight * node.claim)


def _queue(node: Node[E]) -> bool:
    """Sort everything beneath the node, the least served first. Return False if nothing is left."""
    if node.seats:
        node.queue = [seat for seat in node.seats if not seat.chosen]
        if len(node.queue) > 1:
            node.queue.sort(key=_furthest)
        return bool(node.queue)
    node.heap = [(child.ahead, child.last, child.serial, child) for child in node.children.values() if _queue(child)]
    heapify(node.heap)
    return bool(node.heap)


def _reorder(job: Node[E]) -> None:
    """Update the heaps above a job that was on top of each: its time or its queue has changed."""
    node, left = job, bool(job.queue)
    while (parent := node.parent) is not None:
        if left:
            heapreplace(parent.heap, (node.ahead, node.last, node.serial, node))
        else:
            heappop(parent.heap)
        node, left = parent, bool(parent.heap)


def _level(parent: Node[E]) -> None:
    """Raise nodes that got all they asked for to the least served waiting sibling: they are owed nothing."""
    children = parent.children.values()
    waiting = [child.time for child in children if child.taken < child.size]
    now = min(waiting) if waiting else max(child.time for child in children)
    for child in children:
        if child.taken == child.size and child.time < now:
            child.time = now


def _furthest(seat: Seat[E]) -> tuple[int, int]:
    return -seat.entry.k, -seat.number


def _number(seat: Seat[E]) -> int:
    return seat.number


def _since(seat: Seat[E]) -> int:
    return -1 if seat.since is None else seat.since
