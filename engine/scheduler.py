"""Who shares the next forward pass: deficit round robin over tier → guild → user → job, in row-steps. No torch.

A node's *served* is the row-steps it had, divided by its weight; at every level the least served goes first, which is
deficit round robin with a quantum of one row. A newcomer starts level with the least served, so it is in the next
batch, and whoever is furthest ahead pauses: nobody waits behind somebody's thousand steps, and nobody banks credit
while away.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from engine.job import Share

MOST_REMEMBERED = 10_000  # what those who left had been served, so that leaving forgives nothing
MOST_IDLE_TURNS = 4
MOST_USERS = 8  # beyond so many, a group's turn grows no longer
Node = tuple[str, ...]  # a path: (), (tier,), (tier, guild), (tier, guild, user), (tier, guild, user, job)


class Entry(Protocol):
    """What is scheduled: one image. Only entries of equal `key` share a batch; those of one job have one key."""

    job: str
    share: Share
    k: int
    key: Hashable

    @property
    def rows(self) -> int: ...


E = TypeVar("E", bound=Entry)


class Scheduler(Generic[E]):
    """`hold`: steps a turn that a group of equal keys has for each of its users. `bank`: the most row-steps owed."""

    def __init__(self, hold: int = 8, bank: float = 512.0) -> None:
        self._hold, self._bank = hold, bank
        self._jobs: dict[Node, list[E]] = {}
        self._children: dict[Node, set[Node]] = {}
        self._served: dict[Node, float] = {}
        self._clock: dict[Node, float] = {}
        self._key: Hashable = None
        self._held = 0
        self._step = 0
        self._last: dict[Node, int] = {}  # the step in which a job was last served
        self._overdue: dict[Node, int] = {}  # the step since which a job goes before everyone
        self._idle_turns: dict[Node, int] = {}  # turns of its group in which a job was not served
        self._passed: set[Node] = set()  # whom the batch that `next` proposed overtakes

    @property
    def rows(self) -> int:
        """Rows a step of everything that is here."""
        return sum(entry.rows for entries in self._jobs.values() for entry in entries)

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def add(self, entry: E) -> None:
        *levels, job = _path(entry)
        self._jobs.setdefault(job, []).append(entry)
        for parent, node in zip(((), *levels), (*levels, job), strict=True):
            children = self._children.setdefault(parent, set())
            if node not in children:
                children.add(node)
                self._served[node] = max(self._served.get(node, 0.0), self._clock.get(parent, 0.0))

    def remove(self, entry: E) -> None:
        path = _path(entry)
        self._jobs[path[-1]].remove(entry)
        if self._jobs[path[-1]]:
            return
        del self._jobs[path[-1]], self._served[path[-1]]
        self._last.pop(path[-1], None)
        self._overdue.pop(path[-1], None)
        self._idle_turns.pop(path[-1], None)
        for parent, node in reversed(list(zip(((), *path), path, strict=False))):
            if self._children.get(node):
                break
            self._children[parent].discard(node)
            self._children.pop(node, None)
            self._clock.pop(node, None)
        if len(self._served) > MOST_REMEMBERED:
            here = {node for children in self._children.values() for node in children}
            self._served = {node: rows for node, rows in self._served.items() if node in here}

    def next(self, limit: int, limits: Mapping[Hashable, int] = MappingProxyType({})) -> list[E]:
        """The next batch, at most `limit` rows (a single larger entry goes alone); changes nothing. [] when idle.

        `limits` holds the limits of the keys that have one of their own.
        """
        key = self._group()
        limit = limits.get(key, limit)
        self._passed.clear()
        queues = {job: sorted((e for e in each if e.key == key), key=lambda e: e.k) for job, each in self._jobs.items()}
        queues = {job: queue for job, queue in queues.items() if queue}
        if sum(entry.rows for queue in queues.values() for entry in queue) <= limit:
            return [entry for queue in queues.values() for entry in queue]
        return self._fill(queues, limit)

    def charge(self, batch: Sequence[E]) -> None:
        """The batch has run: everyone on the paths above it was served."""
        for entry in batch:
            for node in _path(entry):
                self._served[node] += entry.rows / entry.share.weight
        for parent in {parent for entry in batch for parent in ((), *_path(entry)[:-1])}:
            self._settle(parent)
        if batch[0].key != self._key:
            self._end_turn()
            self._key, self._held = batch[0].key, 0
        self._step += 1
        self._held += 1
        served = {_path(entry)[-1] for entry in batch}
        for job in served:
            self._last[job] = self._step
            self._overdue.pop(job, None)
        for job in (self._passed & self._jobs.keys()) - served:
            self._overdue.setdefault(job, self._step - 1)

    def _end_turn(self) -> None:
        """Whoever went unserved through several turns of its group is overdue.

        Its owner may have had more than its share all along, by a job in another group; its own group still owes it.
        """
        for job, entries in self._jobs.items():
            if entries[0].key == self._key:
                idle = self._last.get(job, 0) <= self._step - self._held
                self._idle_turns[job] = self._idle_turns.get(job, 0) + 1 if idle else 0
                if self._idle_turns[job] >= MOST_IDLE_TURNS:
                    self._overdue.setdefault(job, self._step)

    def _group(self) -> Hashable:
        """The key of the next batch. Groups take turns, as long as they have users; whose user waited longest is next.

        By the groups' own last turns a user with many sizes would have a turn for each. By *served* alone a group could
        starve: somebody who needs little is always the least served, and would always choose.
        """
        keys = {job: entries[0].key for job, entries in self._jobs.items()}
        users = {job[:-1] for job, key in keys.items() if key == self._key}
        others = [job for job, key in keys.items() if key != self._key]
        if not others or (users and self._held < self._hold * min(len(users), MOST_USERS)):
            return self._key
        turn: dict[Node, int] = {}
        for job in keys:
            turn[job[:-1]] = max(turn.get(job[:-1], 0), self._last.get(job, 0))
        return keys[min(others, key=lambda job: (turn[job[:-1]], self._last.get(job, 0), self._tag(job, self._served)))]

    def _fill(self, queues: dict[Node, list[E]], limit: int) -> list[E]:
        """By the fair order; where the next is too wide, somebody narrower may overtake it, once."""
        served = dict(self._served)
        batch: list[E] = []
        too_wide: list[Node] = []
        free = limit
        while queues and free > 0:
            job = min(queues, key=lambda job: (self._overdue.get(job, self._step), *self._tag(job, served)))
            if batch and queues[job][0].rows > free:
                too_wide.append(job)
                del queues[job]
                continue
            entry = queues[job].pop(0)
            batch.append(entry)
            free -= entry.rows
            self._passed.update(too_wide)
            for node in _path(entry):
                served[node] += entry.rows / entry.share.weight
            if not queues[job]:
                del queues[job]
        return batch

    def _settle(self, parent: Node) -> None:
        """Time moves on: a newcomer will start at the least served child, and no child is owed more than the bank."""
        children = self._children[parent]
        floor = max(self._served[child] for child in children) - self._bank
        for child in children:
            self._served[child] = max(self._served[child], floor)
        self._clock[parent] = max(self._clock.get(parent, 0.0), min(self._served[child] for child in children))

    @staticmethod
    def _tag(job: Node, served: dict[Node, float]) -> tuple[float, ...]:
        return tuple(served[job[:depth]] for depth in range(1, len(job) + 1))


def _path(entry: Entry) -> tuple[Node, ...]:
    share = entry.share
    whole = (share.tier, share.guild, share.user, entry.job)
    return whole[:1], whole[:2], whole[:3], whole
