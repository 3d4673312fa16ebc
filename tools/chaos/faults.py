"""Draws from a seed which fault comes next, on what target, and for how long. Pure.

A seed repeats the plan of a campaign, but not what the processes do at that moment. Knows the names
of faults; `fault_injector` injects them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

LEASE = 10.0  # seconds: `engine.bus.subjects.BusLimits.lease`
# How often each is drawn, relative to the others. A kind that ends in -worker hits one worker, each equally likely.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "kill-worker": 10,
        "kill-bot": 9,
        "kill-broker": 7,
        "kill-database": 5,
        "lose-store": 3,
        "stop-worker": 2,
        "stop-bot": 2,
        "stop-broker": 1.5,
        "stop-database": 1.5,
        "lock-database": 1.5,
        "term-worker": 3,
        "term-bot": 2,
        "fill-bot": 1.5,
        "fill-broker": 1,
        "cut-worker": 2,
        "hold-worker": 1.5,
        "drop-worker": 1.5,
        "slow-worker": 1,
        "cut-bot": 1,
        "hold-bot": 1,
        "drop-bot": 1,
        "slow-bot": 1,
        "repeat": 3,
        "lie": 4,
    }
)
KILL_KINDS = ("kill-worker", "kill-bot", "kill-broker", "kill-database", "lose-store")  # kinds that send SIGKILL
SQLITE_ONLY_KINDS = ("lock-database",)
SERVER_ONLY_KINDS = ("kill-database", "stop-database")
MOUNT_KINDS = ("fill-bot", "fill-broker")


@dataclass(frozen=True)
class Fault:
    """`delay`: seconds since the previous one; `duration`: seconds of outage; `salt` draws the remaining choices."""

    number: int
    kind: str
    target: str
    delay: float
    duration: float
    salt: int

    @property
    def is_kill(self) -> bool:
        return self.kind in KILL_KINDS

    def __str__(self) -> str:
        return f"{self.kind} {self.target} for {self.duration:.1f} s"


def list_possible_kinds(database: str, *, mounts: bool, excluded: Sequence[str] = ()) -> list[str]:
    """The kinds that this machine and database allow."""
    excluded_kinds = set(SERVER_ONLY_KINDS if database == "sqlite" else SQLITE_ONLY_KINDS) | set(excluded)
    return [kind for kind in WEIGHTS if kind not in excluded_kinds and (mounts or kind not in MOUNT_KINDS)]


def draw_faults(seed: int, number: int, kinds: Sequence[str], workers: Sequence[str], gap: float) -> Iterator[Fault]:
    """Draws `number` faults, `gap` seconds apart on average."""
    rng = random.Random(seed)
    weights = [WEIGHTS[kind] for kind in kinds]
    for serial in range(number):
        (kind,) = rng.choices(kinds, weights)
        part = kind.partition("-")[2]
        target = rng.choice(list(workers)) if part == "worker" else part if part in ("bot", "database") else "broker"
        after = min(4 * gap, rng.expovariate(1 / gap))
        yield Fault(serial, kind, target, after, _draw_duration(kind, rng), rng.getrandbits(32))


def _draw_duration(kind: str, rng: random.Random) -> float:
    """Seconds of outage: long enough to lose a lease where a process is only stopped, short where it restarts."""
    verb = kind.partition("-")[0]
    if verb == "stop":
        return LEASE * rng.uniform(1.1, 1.6)
    if verb in ("cut", "hold", "drop", "slow"):
        return LEASE * rng.uniform(0.1, 1.5)
    if verb in ("lock", "fill"):
        return rng.uniform(2.0, 14.0)
    return rng.choice((0.0, 0.2, 1.0, 3.0))
