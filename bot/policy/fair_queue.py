"""The fair order: pool → tier → guild → member by virtual time (start-time fair queueing, Goyal et al. 1996). Pure.

Each account has a virtual time: its total cost divided by its weight. At each level the account with the lowest one
goes next; a member's own jobs go in order of arrival. An account that was idle starts at its parent's current virtual
time (`floor`): being idle earns no credit, and a flood of jobs delays only its own member. The store does the same in
SQL; `dispatch_order` predicts it for places in the queue, and the tests compare the two. `WaitEstimate` needs only the
number and cost of each member's jobs.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from engine.contract import BillingKey


@dataclass(frozen=True)
class Account:
    """One node of the tree. `weight`: its share of the parent's time, relative to its siblings."""

    path: str
    parent: str
    virtual: float
    floor: float
    weight: float
    queued: int
    active: int
    since: float | None = None  # for a member: since when it waits for a turn


@dataclass(frozen=True)
class WaitingJob:
    """A waiting job, as the fair order sees it. `account`: the member's path."""

    job: str
    account: str
    cost: float


def dispatch_order(accounts: Mapping[str, Account], waiting: Iterable[WaitingJob]) -> Iterator[str]:
    """Yield job ids in the order of dispatch if no other job comes. O(log n) a job.

    Takes the jobs of one pool: pools are served in parallel.
    """
    nodes = _build_tree(accounts, waiting)
    root = nodes[""]
    while root.children:
        yield _take_next(nodes, root)[0]


@dataclass
class _Node:
    path: str
    weight: float
    children: list[tuple[float, str]] = field(default_factory=list)  # a heap of (virtual time, path)
    jobs: list[tuple[str, float]] = field(default_factory=list)  # newest first, so that pop() takes the oldest


def _build_tree(accounts: Mapping[str, Account], waiting: Iterable[WaitingJob]) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {"": _Node("", 1.0)}
    for job in sorted(waiting, key=lambda one: one.job, reverse=True):
        for path in ancestor_paths(job.account):
            if path not in nodes:
                nodes[path] = _Node(path, accounts[path].weight)
                nodes[parent_path(path)].children.append((accounts[path].virtual, path))
        nodes[job.account].jobs.append((job.job, job.cost))
    for node in nodes.values():
        heapq.heapify(node.children)
    return nodes


def _take_next(nodes: dict[str, _Node], node: _Node) -> tuple[str, float]:
    """Remove and return the next job below `node`; charge every account on the way."""
    if node.jobs:
        return node.jobs.pop()
    virtual_time, path = node.children[0]
    child = nodes[path]
    job, cost = _take_next(nodes, child)
    if child.jobs or child.children:
        heapq.heapreplace(node.children, (charge_time(virtual_time, cost, child.weight), path))
    else:
        heapq.heappop(node.children)
    return job, cost


def account_paths(pool: str, billing_key: BillingKey) -> tuple[str, str, str, str]:
    """Return the accounts that a job is charged to, from its pool down to its member."""
    parts = [
        part.replace("%", "%25").replace("/", "%2F")
        for part in (pool, billing_key.tier, billing_key.guild, billing_key.user)
    ]
    return (parts[0], "/".join(parts[:2]), "/".join(parts[:3]), "/".join(parts))


def ancestor_paths(path: str) -> tuple[str, ...]:
    """Return the accounts on a path, from the pool down to the path itself."""
    parts = path.split("/")
    return tuple("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def parent_path(path: str) -> str:
    """Return the account above; empty above a pool."""
    return path.rpartition("/")[0]


def account_name(path: str) -> str:
    """Return the name at the end of a path, unescaped."""
    return path.rpartition("/")[2].replace("%2F", "/").replace("%25", "%")


def entry_time(virtual_time: float, floor: float) -> float:
    """Return the virtual time at which an account with nothing queued joins."""
    return max(virtual_time, floor)


def charge_time(virtual_time: float, cost: float, weight: float) -> float:
    """Return an account's virtual time after `cost` device-seconds (negative: a refund)."""
    return virtual_time + cost / weight


class WaitEstimate:
    """The members who wait in one pool: for each, the number of jobs and their average cost (device-seconds)."""

    def __init__(self, members: Iterable[tuple[int, float]] = ()) -> None:
        sorted_members = sorted(members)
        self._job_counts = [count for count, _ in sorted_members]
        self._job_sums = [0, *accumulate(self._job_counts)]
        self._work_sums = [0.0, *accumulate(count * cost for count, cost in sorted_members)]
        self._cost_sums = [0.0, *accumulate(cost for _, cost in sorted_members)]

    def estimate(self, own_ahead: int) -> tuple[int, float]:
        """Return how many jobs start before a job, and the cost of those jobs and this one.

        `own_ahead`: how many jobs of the same member precede it. Until it starts, each member gets at most `own_ahead`
        + 1 turns. O(log members).
        """
        short_queues = bisect_right(self._job_counts, own_ahead + 1)
        jobs = self._job_sums[short_queues] + (own_ahead + 1) * (len(self._job_counts) - short_queues)
        long_queue_cost = self._cost_sums[-1] - self._cost_sums[short_queues]
        return max(0, jobs - 1), self._work_sums[short_queues] + (own_ahead + 1) * long_queue_cost
