"""Who shares the next forward pass: fair queueing over tier → guild → user → job, by calibrated cost. No torch.

Two questions, both answered by start-time fair queueing. Which images may share a forward (a *group*: equal keys) and
has the device now: `turns.py`. Who of that group is in the batch: `group.py`. A newcomer starts level with the
least served, so it is in the very next batch of its group, and whoever is furthest ahead pauses: nobody waits behind
somebody's thousand steps, and nobody banks credit while away or paused.

Bounds, for siblings f and m at any level, with weights w; W is the cost they had over any interval:
- In a group, while f has an image that is left out and m's images are at least as wide as f's:
  W_m/w_m - W_f/w_f ≤ c_f/w_f + c_m/w_m (Goyal et al. 1997, theorem 1; c the dearest image-step), and with new jobs,
  which go first while their owner is at most a batch ahead, one batch more. Narrower images may win the room that
  nobody else fits in: no batch leaves any. Deficit round robin (Shreedhar and Varghese 1996, "Efficient fair queuing
  using deficit round-robin") with a quantum q allows 2 c + q, and lets a newcomer wait for a whole round.
- Between groups, for users who have all their work in one: the device times T of groups a and b with claims C (users,
  by weight) differ by |T_a/C_a - T_b/C_b| ≤ L/C_a + L/C_b while nobody joins or leaves them, L the cost of a turn.
- Where times are calibrated, a step of a user with a share s, whose rows alone take t, takes t/s or less on average
  (`patience.py`), as long as a batch of those rows and one more does.
- A group is left after `hold` steps, or `quantum` of cost, at the earliest, unless nobody is left in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic

from engine.scheduler.group import Group
from engine.scheduler.shares import E, Entry, Seat
from engine.scheduler.turns import Turns

__all__ = ["Entry", "Scheduler"]
MOST_WEIGHT = 1000.0


class Scheduler(Generic[E]):
    """A group's turn lasts `hold` steps, or `quantum` of cost (milliseconds, where entries have a price) if less."""

    def __init__(self, hold: int = 8, quantum: float = 1000.0) -> None:
        self._turns: Turns[E] = Turns(hold, quantum)
        self._groups: dict[Hashable, Group[E]] = {}
        self._seats: dict[int, Seat[E]] = {}  # by the entry's id
        self._paused: dict[int, Seat[E]] = {}
        self._paused_jobs: set[str] = set()
        self._newcomers: set[str] = set()  # jobs that were never served
        self._weights: dict[str, float] = {}  # of jobs, beside other jobs of their user
        self._offer: tuple[Group[E], dict[int, float]] | None = None  # what `next` proposed, and its costs
        self._changed = False
        self._arrived = 0
        self._step = 0

    @property
    def rows(self) -> int:
        """Rows a step of everything that is here and not paused."""
        return sum(seat.entry.rows for seat in self._seats.values())

    @property
    def idle(self) -> bool:
        """Nothing is here, or all of it is paused."""
        return not self._seats

    def __len__(self) -> int:
        return len(self._seats) + len(self._paused)

    def __contains__(self, job: str) -> bool:
        return any(seat.names[3] == job for seats in (self._seats, self._paused) for seat in seats.values())

    def add(self, entry: E) -> None:
        share = entry.share
        names = (share.tier, share.guild, share.user, entry.job)
        self._arrived += 1
        if entry.job not in self:
            self._newcomers.add(entry.job)
        seat = Seat(entry, self._arrived, names, self._turns.whole)
        self._paused[id(entry)] = seat
        if entry.job not in self._paused_jobs:
            self._enter(id(entry))

    def remove(self, entry: E) -> None:
        """Raises KeyError where it is not here."""
        if id(entry) in self._seats:
            self._exit(id(entry))
        del self._paused[id(entry)]
        if entry.job not in self:
            self._paused_jobs.discard(entry.job)
            self._newcomers.discard(entry.job)
            self._weights.pop(entry.job, None)

    def pause(self, job: str) -> None:
        """From the next step on it has no rows and earns no credit, until it is resumed. Unknown jobs are ignored."""
        if job in self:
            self._paused_jobs.add(job)
        for number in self._of(job, self._seats):
            self._exit(number)

    def resume(self, job: str) -> None:
        """It goes on as it was: owing what it owed, and owed nothing for its absence."""
        self._paused_jobs.discard(job)
        for number in self._of(job, self._paused):
            self._enter(number)

    def prioritise(self, job: str, weight: float) -> None:
        """Of its user's rows the job gets `weight` times as many as one of weight 1; other users lose nothing by it.

        Raises ValueError where the weight is not above 0 and at most 1000.
        """
        if not 0.0 < weight <= MOST_WEIGHT:
            raise ValueError(f"a job's weight is above 0 and at most {MOST_WEIGHT:g}, not {weight:g}")
        if job not in self:
            return
        self._weights[job] = weight
        for number in self._of(job, self._seats):
            self._seats[number].job.weight = weight
        self._changed = True

    def next(self, limit: int, limits: Mapping[Hashable, int] = MappingProxyType({})) -> list[E]:
        """The next batch, at most `limit` rows (a single wider entry goes alone); changes nothing. [] when idle.

        `limits` holds the limits of the keys that have one of their own.
        """
        self._regroup()
        seat = self._turns.next()
        if seat is None:
            return []
        group = self._groups[seat.key]
        batch = group.fill(limits.get(seat.key, limit), self._step)
        self._offer = group, {seat.number: seat.cost for seat in batch}
        return [seat.entry for seat in batch]

    def charge(self, batch: Sequence[E], cost: float | None = None) -> None:
        """The batch has run, at the rows and prices that it had when it was proposed, even if it has moved on since.

        `cost`: what the whole forward took, where that is not the sum of its rows (padding); it is the group's charge.
        """
        if self._offer is None:
            return
        group, costs = self._offer
        seats = [self._seats[id(entry)] for entry in batch if id(entry) in self._seats]
        ran = [seat for seat in seats if seat.number in costs and seat.number in group.seats]
        self._offer = None
        if not ran:
            return
        self._lay_claims()
        self._step += 1
        each = [costs[seat.number] for seat in ran]
        group.charge(ran, each, self._step)
        self._turns.charge(group, sum(each) if cost is None else cost, self._step)

    def _of(self, job: str, seats: Mapping[int, Seat[E]]) -> list[int]:
        return [number for number, seat in seats.items() if seat.names[3] == job]

    def _levels(self, seat: Seat[E]) -> tuple[float, ...]:
        weight = seat.entry.share.weight
        return weight, weight, weight, self._weights.get(seat.names[3], 1.0)

    def _enter(self, number: int) -> None:
        seat = self._seats[number] = self._paused.pop(number)
        seat.job = self._turns.whole.join(seat, self._levels(seat))
        self._sit(seat, seat.entry.key)
        self._changed = True

    def _exit(self, number: int) -> None:
        seat = self._paused[number] = self._seats.pop(number)
        seat.job.leave(seat)
        self._rise(seat)
        self._changed = True

    def _sit(self, seat: Seat[E], key: Hashable) -> None:
        if key not in self._groups:
            self._groups[key] = Group(key, self._newcomers)
        self._groups[key].join(seat)

    def _rise(self, seat: Seat[E]) -> None:
        group = self._groups[seat.key]
        group.leave(seat)
        if not group.seats:
            del self._groups[seat.key]
            self._turns.forget(group)
            if self._offer is not None and self._offer[0] is group:
                self._offer = None

    def _regroup(self) -> None:
        """Keys change from step to step: everyone sits where its next step belongs."""
        for seat in self._seats.values():
            key = seat.entry.key
            if key is not seat.key and key != seat.key:
                self._rise(seat)
                self._sit(seat, key)
                self._changed = True
        self._lay_claims()

    def _lay_claims(self) -> None:
        if self._changed:
            self._changed = False
            for group in self._groups.values():
                group.lay_claims(self._turns.whole)
