"""Draws from a seed which plug is pulled next, on what target, and for how long. Pure.

A seed repeats the plan of a campaign, but not what the processes do at that moment. Knows only names
of faults; `fault_injector` injects them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

LEASE = 10.0  # seconds: `engine.bus.streams.BusLimits.lease`
# How often each is drawn, relative to the others. A kind that ends in -worker hits one worker, each equally likely.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "kill-worker": 10, "kill-bot": 9, "kill-broker": 7, "kill-database": 5, "lose-store": 3,
        "stop-worker": 2, "stop-bot": 2, "stop-broker": 1.5, "stop-database": 1.5, "lock-database": 1.5,
        "term-worker": 3, "term-bot": 2, "fill-bot": 1.5, "fill-broker": 1,
        "cut-worker": 2, "hold-worker": 1.5, "drop-worker": 1.5, "slow-worker": 1,
        "cut-bot": 1, "hold-bot": 1, "drop-bot": 1, "slow-bot": 1,
        "repeat": 3, "lie": 4,
    }
)  # fmt: skip
KILLS = ("kill-worker", "kill-bot", "kill-broker", "kill-database", "lose-store")  # kinds that send SIGKILL
ONLY_SQLITE = ("lock-database",)
ONLY_SERVER = ("kill-database", "stop-database")
NEED_MOUNTS = ("fill-bot", "fill-broker")


@dataclass(frozen=True)
class Plug:
    """`after`: seconds since the previous one; `lasts`: seconds of outage; `salt` draws the remaining choices."""

    number: int
    kind: str
    target: str
    after: float
    lasts: float
    salt: int

    @property
    def kills(self) -> bool:
        return self.kind in KILLS

    def __str__(self) -> str:
        return f"{self.kind} {self.target} for {self.lasts:.1f} s"


def possible(database: str, *, mounts: bool, without: Sequence[str] = ()) -> list[str]:
    """The kinds that this machine and database allow."""
    out = set(ONLY_SERVER if database == "sqlite" else ONLY_SQLITE) | set(without)
    return [kind for kind in WEIGHTS if kind not in out and (mounts or kind not in NEED_MOUNTS)]


def draw(seed: int, number: int, kinds: Sequence[str], workers: Sequence[str], gap: float) -> Iterator[Plug]:
    """Draws `number` plugs, `gap` seconds apart on average."""
    chance = random.Random(seed)
    weights = [WEIGHTS[kind] for kind in kinds]
    for serial in range(number):
        (kind,) = chance.choices(kinds, weights)
        part = kind.partition("-")[2]
        target = chance.choice(list(workers)) if part == "worker" else part if part in ("bot", "database") else "broker"
        after = min(4 * gap, chance.expovariate(1 / gap))
        yield Plug(serial, kind, target, after, _draw_duration(kind, chance), chance.getrandbits(32))


def _draw_duration(kind: str, chance: random.Random) -> float:
    """Seconds of outage: long enough to lose a lease where a process is only stopped, short where it restarts."""
    verb = kind.partition("-")[0]
    if verb == "stop":
        return LEASE * chance.uniform(1.1, 1.6)
    if verb in ("cut", "hold", "drop", "slow"):
        return LEASE * chance.uniform(0.1, 1.5)
    if verb in ("lock", "fill"):
        return chance.uniform(2.0, 14.0)
    return chance.choice((0.0, 0.2, 1.0, 3.0))
