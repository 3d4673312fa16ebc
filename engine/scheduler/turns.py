"""Which group of equal keys has the device: groups take turns, in proportion to what their users may claim.

A turn's device time is charged to everyone who has work in that group, by claim and not by rows: who needs few rows
pulls no group along, and who spreads work over many sizes wins nothing. The next turn is for the least charged tier, in
it the least charged guild, user, job.
"""

from __future__ import annotations

from typing import Generic

from engine.scheduler.group import Group
from engine.scheduler.shares import E, Node, Seat


class Turns(Generic[E]):
    """A turn lasts `hold` steps or `quantum` of cost, whichever is first, unless its group has left."""

    def __init__(self, hold: int, quantum: float) -> None:
        self.whole: Node[E] = Node()
        self._hold, self._quantum = hold, quantum
        self._group: Group[E] | None = None
        self._steps, self._spent = 0, 0.0

    @property
    def over(self) -> bool:
        return self._steps >= self._hold or self._spent >= self._quantum

    def next(self) -> Seat[E] | None:
        """The seat whose group runs next: of the group that runs now until its turn is over. Changes no times."""
        if self._group is not None and self._group.seats and not self.over:
            return next(iter(self._group.seats.values()))
        node = self.whole
        while node.children:
            node = min(node.children.values(), key=_order)
        return min(node.seats, key=_step, default=None)

    def forget(self, group: Group[E]) -> None:
        """It has no seats any more; nothing here may keep what has left from being freed."""
        if group is self._group:
            self._group = None

    def charge(self, group: Group[E], cost: float, step: int) -> None:
        """The group has run for one step."""
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
