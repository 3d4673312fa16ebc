"""Group turns: groups of equal keys take turns on the device, in proportion to their users' claims.

A turn's device time is charged to all who have work in that group, by claim and not by rows. So a user of few rows does
not slow the group down, and spreading work over many sizes gains nothing. The next turn goes to the least charged tier,
in it the least charged guild, user and job.
"""

from __future__ import annotations

from typing import Generic

from engine.scheduler.group import Group
from engine.scheduler.shares import E, Node, Seat


class Turns(Generic[E]):
    """A turn lasts `hold` steps or `quantum` of cost, whichever comes first, or until its group is empty."""

    def __init__(self, hold: int, quantum: float) -> None:
        self.whole: Node[E] = Node()
        self._hold, self._quantum = hold, quantum
        self._group: Group[E] | None = None
        self._steps, self._spent = 0, 0.0

    @property
    def over(self) -> bool:
        return self._steps >= self._hold or self._spent >= self._quantum

    def next(self) -> Seat[E] | None:
        """Return a seat of the group that runs next: the current one until its turn is over. Changes no times."""
        if self._group is not None and self._group.seats and not self.over:
            return next(iter(self._group.seats.values()))
        node = self.whole
        while node.children:
            node = min(node.children.values(), key=_order)
        return min(node.seats, key=_step, default=None)

    def forget(self, group: Group[E]) -> None:
        """Drop a group without seats, so that its images can be freed."""
        if group is self._group:
            self._group = None

    def charge(self, group: Group[E], cost: float, step: int) -> None:
        """Charge a group for one step."""
        if group is not self._group or self.over:
            self._group, self._steps, self._spent = group, 0, 0.0
        self._steps += 1
        self._spent += cost
        for node, rate in group.rates:
            node.time += cost * rate
            node.last = step


def _order(node: Node[E]) -> tuple[float, int, int]:
    return node.time, node.last, node.serial


def _step(seat: Seat[E]) -> tuple[int, int]:
    return seat.entry.k, seat.number
