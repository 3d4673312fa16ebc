"""The fair order: pool → tier → guild → member by virtual time (start-time fair queueing, Goyal et al. 1996). Pure.

Each account has a virtual time: its total cost divided by its weight. At each level the account with the lowest one
goes next; a member's own jobs go in order of arrival. An account that was idle starts at its parent's current virtual
time (`floor`): being idle earns no credit, and a flood of jobs delays only its own member. The store does the same in
SQL; `dispatch_order` predicts it, and the tests compare the two. `wait_reason` says why a job waits.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate

from bot.domain.texts import format_duration
from engine.contract import BillingKey
from engine.process.load_progress import format_loaded_part, loaded_percent


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


PATIENCE_SECONDS = 300.0
OVERDUE_INTERVAL = 8
MAX_BYPASS_SECONDS = 20.0
FORGET_SECONDS = 10 * MAX_BYPASS_SECONDS  # a passed job that is not sent for so long has ended or cannot run
MAX_TRACKED_JOBS = 1000


class QueueBypass:
    """What one dispatcher remembers of its dispatches."""

    def __init__(
        self,
        patience: float = PATIENCE_SECONDS,
        overdue_interval: int = OVERDUE_INTERVAL,
        max_bypass: float = MAX_BYPASS_SECONDS,
    ) -> None:
        self.patience = patience
        self.overdue_interval = overdue_interval
        self.max_bypass = max_bypass
        self._dispatch_counts: Counter[str] = Counter()  # pool → dispatches since the last overdue one
        self._bypassed_since: dict[str, float] = {}  # job → since when others pass it
        self._last_loads: dict[str, tuple[str, float]] = {}  # pool → the last model to load, and when

    def is_overdue_turn(self, pool: str) -> bool:
        """Return whether the pool's next dispatch goes to the member who is overdue longest, if there is one."""
        return self._dispatch_counts[pool] >= self.overdue_interval - 1

    def overdue_before(self, now: float) -> float:
        """Return the time before which a member's wait must have begun to be overdue."""
        return now - self.patience

    def bypass_models(self, pool: str, loaded: Set[str], now: float) -> Set[str]:
        """Return the models whose jobs may pass: those in memory, or only the one that is loading.

        The loading model may need the memory of the others.
        """
        model, loaded_at = self._last_loads.get(pool, ("", 0.0))
        return {model} if model and model not in loaded and now - loaded_at < FORGET_SECONDS else loaded

    def can_bypass(self, job: str, now: float) -> bool:
        """Return whether others may still pass this job, which is next and whose model is not in memory."""
        if len(self._bypassed_since) > MAX_TRACKED_JOBS:
            self._bypassed_since = {
                other_job: since for other_job, since in self._bypassed_since.items() if now - since < FORGET_SECONDS
            }
        return now - self._bypassed_since.setdefault(job, now) < self.max_bypass

    def note_dispatch(
        self, pool: str, job: str, now: float, *, loads_model: str = "", was_overdue: bool = False
    ) -> None:
        """Note a dispatch.

        `loads_model`: its model, if not in memory; `was_overdue`: it was the turn of the member who is overdue longest.
        """
        if loads_model:
            self._last_loads[pool] = (loads_model, now)
        self._bypassed_since.pop(job, None)
        self._dispatch_counts[pool] = 0 if was_overdue else self._dispatch_counts[pool] + 1


@dataclass(frozen=True)
class WaitFacts:
    """What is known about a waiting job.

    `startup_notice`: a sentence about a worker that is starting up, while none can run the job. `any_worker`: a worker
    is online; `is_offered`: one in its pool has its model (empty: it needs none). `is_loaded`: the model is in memory.
    Else `loaded_share`: the loaded share (None: no worker loads it) of `model_bytes` bytes (0: unknown), and
    `load_seconds`: the seconds that loading takes. `member_running`, `guild_running`, `channel_running`: running jobs
    of its member, server and channel, with their limits (None: none); a server limit of 0 means closed. `jobs_ahead`:
    jobs before it, of `other_members` members (0: not counted). Front ends show the ETA beside it.
    """

    model: str = ""
    startup_notice: str = ""
    any_worker: bool = True
    is_offered: bool = True
    is_loaded: bool = True
    loaded_share: float | None = None
    model_bytes: int = 0
    load_seconds: float = 0.0
    member_running: int = 0
    member_limit: int | None = None
    guild_running: int = 0
    guild_limit: int | None = None
    channel_running: int = 0
    channel_limit: int | None = None
    jobs_ahead: int = 0
    other_members: int = 0


def wait_reason(facts: WaitFacts) -> str:
    """Return one sentence, two at most."""
    return _no_worker_reason(facts) or _limit_reason(facts) or _queue_reason(facts)


def _no_worker_reason(facts: WaitFacts) -> str:
    if facts.startup_notice and not (facts.any_worker and facts.is_offered):
        return facts.startup_notice
    model_part = f" for {facts.model}" if facts.model else ""
    if not facts.any_worker:
        return f"No worker is online{model_part}."
    return "" if facts.is_offered else f"No worker that is online has {facts.model or 'room for it'}: it waits for one."


def _limit_reason(facts: WaitFacts) -> str:
    if facts.guild_limit == 0:
        return "This server starts no jobs at present."
    limits = (
        (facts.member_running, facts.member_limit, "member"),
        (facts.guild_running, facts.guild_limit, "server"),
        (facts.channel_running, facts.channel_limit, "channel"),
    )
    for running, limit, owner in limits:
        if limit is not None and running >= limit:
            return f"{running} of this {owner}'s run already: one of them must end first."
    return ""


def _queue_reason(facts: WaitFacts) -> str:
    if facts.jobs_ahead:
        place_part = f"{facts.jobs_ahead} ahead of it"
        place_part += f", of {facts.other_members} other members." if facts.other_members > 1 else "."
    else:
        place_part = "Next in line: it starts when there is room."
    return f"{_loading_part(facts)} {place_part}".lstrip()


def _loading_part(facts: WaitFacts) -> str:
    if facts.is_loaded:
        return ""
    if facts.loaded_share is not None:
        loaded_part = (
            format_loaded_part(facts.loaded_share, facts.model_bytes)
            if facts.model_bytes
            else f"{loaded_percent(facts.loaded_share)} %"
        )
        return f"{facts.model} is being loaded, {loaded_part}."
    duration_part = f", which takes about {format_duration(facts.load_seconds)}" if facts.load_seconds else ""
    return f"{facts.model} has to be loaded first{duration_part}."
