"""Group turns: groups of equal keys take turns on the device, in proportion to their users' shares.

A turn's device time is charged to all who have work in that group, by their share and not by rows. So a user of few
rows does not slow the group down, and spreading work over many sizes gains nothing. The next turn goes to the least
charged tier, in it the least charged guild, user and job.
"""

from __future__ import annotations

from typing import Generic

from engine.batching.group import Group
from engine.batching.share_tree import E, Seat, ShareNode


class GroupTurns(Generic[E]):
    """A turn lasts `turn_steps` steps or `quantum` of cost, whichever comes first, or until its group is empty."""

    def __init__(self, turn_steps: int, quantum: float) -> None:
        self.root: ShareNode[E] = ShareNode()
        self._turn_steps = turn_steps
        self._quantum = quantum
        self._group: Group[E] | None = None
        self._turn_steps_done = 0
        self._turn_cost = 0.0

    @property
    def is_over(self) -> bool:
        return self._turn_steps_done >= self._turn_steps or self._turn_cost >= self._quantum

    def next_seat(self) -> Seat[E] | None:
        """Return a seat of the group that runs next: the current one until its turn is over. Changes no times."""
        if self._group is not None and self._group.seats and not self.is_over:
            return next(iter(self._group.seats.values()))
        node = self.root
        while node.children:
            node = min(node.children.values(), key=_by_service)
        return min(node.seats, key=_by_progress, default=None)

    def drop_group(self, group: Group[E]) -> None:
        """Drop a group without seats, so that its images can be freed."""
        if group is self._group:
            self._group = None

    def charge(self, group: Group[E], cost: float, step: int) -> None:
        """Charge a group for one step."""
        if group is not self._group or self.is_over:
            self._group = group
            self._turn_steps_done = 0
            self._turn_cost = 0.0
        self._turn_steps_done += 1
        self._turn_cost += cost
        for node, rate in group.rates:
            node.time += cost * rate
            node.last_step = step


def _by_service(node: ShareNode[E]) -> tuple[float, int, int]:
    return node.time, node.last_step, node.serial


def _by_progress(seat: Seat[E]) -> tuple[int, int]:
    return seat.entry.k, seat.number
