"""Chooses the images of the next forward: fair queueing over tier → guild → user → job, by calibrated cost. No torch.

Start-time fair queueing answers two questions. Images of equal key may share a forward and form a *group*:
`GroupTurns` decides which group has the device. `Group` decides which of its images are in the batch. A new job starts
level with the least served, so it is in the very next batch of its group. The most served images are left out
of the batch. So nobody waits behind someone's thousand steps, and nobody gains credit while away or paused.

Bounds for siblings f and m at any level, with weights w; W is their cost over any interval:

- In a group, while an image of f is left out and m's images are at least as wide as f's: W_m/w_m - W_f/w_f ≤ c_f/w_f +
  c_m/w_m (Goyal et al. 1997, theorem 1; c is the largest image-step). New jobs go first while their owner is at most a
  batch ahead, which adds one batch. Narrower images may use rows that no other image fits in, so that no batch leaves
  any unused. Deficit round robin (Shreedhar and Varghese 1996, "Efficient fair queuing using deficit round-robin") with
  a quantum q allows 2 c + q, and lets a new job wait for a whole round.
- Between groups, for users with all their work in one: the device times T of groups a and b with user weights C differ
  by |T_a/C_a - T_b/C_b| ≤ L/C_a + L/C_b while nobody joins or leaves; L is the cost of a turn.
- With calibrated times, take a user with share s whose rows alone take t. A step takes t/s or less on average
  (`StepTimeLimiter`), as long as a batch of those rows and one more does.
- A group keeps the device for at least `turn_steps` steps or `quantum` of cost, unless its last image leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic

from engine.batching.group import E, Group, Seat, ShareNode

MAX_WEIGHT = 1000.0


class Scheduler(Generic[E]):
    """A group's turn lasts `turn_steps` steps or `quantum` of cost (milliseconds, if entries have a `row_ms`)."""

    def __init__(self, turn_steps: int = 8, quantum: float = 1000.0) -> None:
        self._group_turns: GroupTurns[E] = GroupTurns(turn_steps, quantum)
        self._groups: dict[Hashable, Group[E]] = {}
        self._seats: dict[int, Seat[E]] = {}  # by the entry's id
        self._paused: dict[int, Seat[E]] = {}
        self._paused_jobs: set[str] = set()
        self._unserved_jobs: set[str] = set()  # jobs that were never served
        self._weights: dict[str, float] = {}  # of jobs, among jobs of the same user
        self._proposal: tuple[Group[E], dict[int, float]] | None = None  # the proposal of `next_batch`, and its costs
        self._is_stale = False
        self._arrival_count = 0
        self._step_count = 0

    @property
    def active_rows(self) -> int:
        """Rows a step of all entries that are not paused."""
        return sum(seat.entry.rows for seat in self._seats.values())

    @property
    def is_idle(self) -> bool:
        """Whether no entries are here, or all are paused."""
        return not self._seats

    def __len__(self) -> int:
        return len(self._seats) + len(self._paused)

    def __contains__(self, job: str) -> bool:
        return any(seat.job == job for seats in (self._seats, self._paused) for seat in seats.values())

    def add(self, entry: E) -> None:
        share = entry.billing_key
        user = (share.tier, share.guild, share.user)
        self._arrival_count += 1
        if entry.job not in self:
            self._unserved_jobs.add(entry.job)
        seat = Seat(entry, self._arrival_count, user, entry.job, self._group_turns.root)
        self._paused[id(entry)] = seat
        if entry.job not in self._paused_jobs:
            self._activate(id(entry))

    def remove(self, entry: E) -> None:
        """Remove the entry. Raises KeyError if it is unknown."""
        if id(entry) in self._seats:
            self._deactivate(id(entry))
        del self._paused[id(entry)]
        if entry.job not in self:
            self._paused_jobs.discard(entry.job)
            self._unserved_jobs.discard(entry.job)
            self._weights.pop(entry.job, None)

    def pause(self, job: str) -> None:
        """Give the job no rows and no credit from the next step on, until it is resumed. Unknown jobs are ignored."""
        if job in self:
            self._paused_jobs.add(job)
        for entry_id in self._entry_ids(job, self._seats):
            self._deactivate(entry_id)

    def resume(self, job: str) -> None:
        """Continue the job: its debts remain, and it gains no credit for the pause."""
        self._paused_jobs.discard(job)
        for entry_id in self._entry_ids(job, self._paused):
            self._activate(entry_id)

    def set_job_weight(self, job: str, weight: float) -> None:
        """Give the job `weight` times the rows of its user's jobs of weight 1; other users lose nothing.

        Raises ValueError if the weight is not above 0 and at most 1000.
        """
        if not 0.0 < weight <= MAX_WEIGHT:
            raise ValueError(f"a job's weight is above 0 and at most {MAX_WEIGHT:g}, not {weight:g}")
        if job not in self:
            return
        self._weights[job] = weight
        for entry_id in self._entry_ids(job, self._seats):
            self._seats[entry_id].job_node.weight = weight
        self._is_stale = True

    def next_batch(self, limit: int, limits: Mapping[Hashable, int] = MappingProxyType({})) -> list[E]:
        """Return the next batch, at most `limit` rows (a single wider entry runs alone). [] when idle. Charges nothing.

        `limits`: the batch limits of keys that have their own.
        """
        self._regroup()
        seat = self._group_turns.next_seat()
        if seat is None:
            return []
        group = self._groups[seat.key]
        batch = group.choose_batch(limits.get(seat.key, limit), self._step_count)
        self._proposal = group, {seat.number: seat.cost for seat in batch}
        return [seat.entry for seat in batch]

    def charge(self, batch: Sequence[E], cost: float | None = None) -> None:
        """Charge a batch that has run, at the costs of its proposal, even if an image's next step has other rows.

        `cost`: the forward's cost if it is not the sum of its rows (padding); it is charged to the group.
        """
        if self._proposal is None:
            return
        group, costs = self._proposal
        seats = [self._seats[id(entry)] for entry in batch if id(entry) in self._seats]
        served = [seat for seat in seats if seat.number in costs and seat.number in group.seats]
        self._proposal = None
        if not served:
            return
        self._update_shares()
        self._step_count += 1
        seat_costs = [costs[seat.number] for seat in served]
        group.charge(served, seat_costs, self._step_count)
        self._group_turns.charge(group, sum(seat_costs) if cost is None else cost, self._step_count)

    def _entry_ids(self, job: str, seats: Mapping[int, Seat[E]]) -> list[int]:
        return [entry_id for entry_id, seat in seats.items() if seat.job == job]

    def _path_weights(self, seat: Seat[E]) -> tuple[float, ...]:
        weight = seat.entry.billing_key.weight
        return weight, weight, weight, self._weights.get(seat.job, 1.0)

    def _activate(self, entry_id: int) -> None:
        seat = self._seats[entry_id] = self._paused.pop(entry_id)
        seat.job_node = self._group_turns.root.add_seat(seat, self._path_weights(seat))
        self._join_group(seat, seat.entry.key)
        self._is_stale = True

    def _deactivate(self, entry_id: int) -> None:
        seat = self._paused[entry_id] = self._seats.pop(entry_id)
        seat.job_node.remove_seat(seat)
        self._leave_group(seat)
        self._is_stale = True

    def _join_group(self, seat: Seat[E], key: Hashable) -> None:
        if key not in self._groups:
            self._groups[key] = Group(key, self._unserved_jobs)
        self._groups[key].join(seat)

    def _leave_group(self, seat: Seat[E]) -> None:
        group = self._groups[seat.key]
        group.leave(seat)
        if not group.seats:
            del self._groups[seat.key]
            self._group_turns.drop_group(group)
            if self._proposal is not None and self._proposal[0] is group:
                self._proposal = None

    def _regroup(self) -> None:
        """Move entries whose key has changed to the group of their next step."""
        for seat in self._seats.values():
            key = seat.entry.key
            if key is not seat.key and key != seat.key:
                self._leave_group(seat)
                self._join_group(seat, key)
                self._is_stale = True
        self._update_shares()

    def _update_shares(self) -> None:
        if self._is_stale:
            self._is_stale = False
            for group in self._groups.values():
                group.update_shares(self._group_turns.root)


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


@dataclass
class _Pace:
    """`due`: when the job's next step may begin; `step`: the least step of its images when it began to wait."""

    seconds: float
    due: float
    step: int = -1
    is_waiting: bool = False


class JobControls(Generic[E]):
    """What the worker says of running jobs: pauses, weights and paces, for images that are scheduled later, too.

    It takes paused jobs, and jobs that wait for their pace, from the scheduler. `clock`: in seconds.
    """

    def __init__(self, scheduler: Scheduler[E], clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._paces: dict[str, _Pace] = {}
        self._paused_jobs = set[str]()  # also while all images of a job are busy
        self._weights: dict[str, float] = {}

    @property
    def seconds_until_due(self) -> float | None:
        """Seconds until the next step of a job that waits for its pace, at least 0; None if none waits."""
        times = [pace.due for pace in self._paces.values() if pace.is_waiting]
        return max(0.0, min(times) - self._clock()) if times else None

    def pause(self, job: str) -> None:
        self._paused_jobs.add(job)
        self._scheduler.pause(job)

    def resume(self, job: str) -> None:
        self._paused_jobs.discard(job)
        if not self._is_waiting(job):
            self._scheduler.resume(job)

    def _is_waiting(self, job: str) -> bool:
        return job in self._paces and self._paces[job].is_waiting

    def set_weight(self, job: str, weight: float) -> None:
        """Set a job's weight. Raises ValueError outside (0, 1000]."""
        self._scheduler.set_job_weight(job, weight)
        self._weights[job] = weight

    def set_pace(self, job: str, seconds: float) -> None:
        """Let the steps of a job begin so many seconds apart; with 0, as soon as they can."""
        now = self._clock()
        pace = self._paces.setdefault(job, _Pace(seconds, now))
        pace.due = max(now, pace.due + seconds - pace.seconds) if pace.is_waiting else now
        pace.seconds = seconds

    def apply_to(self, job: str) -> None:
        """Apply all to an image of the job that has just been scheduled."""
        if job in self._weights:
            self._scheduler.set_job_weight(job, self._weights[job])
        if job in self._paused_jobs or self._is_waiting(job):
            self._scheduler.pause(job)

    def resume_due_jobs(self) -> None:
        """Give back the jobs whose next step is due."""
        now = self._clock()
        for job, pace in self._paces.items():
            if pace.is_waiting and pace.due <= now:
                pace.is_waiting = False
                if job not in self._paused_jobs:
                    self._scheduler.resume(job)

    def keep_paces(self, steps: Iterable[tuple[str, int]]) -> None:
        """Take jobs that have just stepped until their next steps are due. `steps`: the least step of each job.

        Images of one job need not step together: a step counts once the last of them has taken it. A job that is late
        goes on at once, and does not catch up.
        """
        for job, step in steps:
            pace = self._paces.get(job)
            if pace is None or pace.seconds <= 0 or step <= pace.step:
                continue
            now = self._clock()
            pace.step = step
            pace.due = max(now, pace.due + pace.seconds)
            pace.is_waiting = pace.due > now
            if pace.is_waiting:
                self._scheduler.pause(job)

    def forget(self, job: str) -> None:
        """Drop a job that has left."""
        self._paused_jobs.discard(job)
        self._weights.pop(job, None)
        self._paces.pop(job, None)
