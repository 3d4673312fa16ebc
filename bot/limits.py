"""How much one member may ask for: the limits, what was used of them, and the sentence when that is too much.

Knows numbers and an injected `now`; knows nothing of where usage is counted, of SQL or of a front end.

Shipped defaults: 3 jobs of a member run at once and 7 more wait (the eleventh is refused), as Midjourney has it; and
1800 calibrated device-seconds in any 24 hours: half an hour of the machine, some tens of the embedded model's grids at
full length. The window rolls: a charge counts until 24 hours after it was made, so there is no rush at midnight and no
time zone. A job is charged its estimated cost when it is taken and the true cost when it ends (`engine.job.cost`).
Every moment is in seconds since 1970, every cost in device-seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.refused import Refused
from bot.sentences import duration, jobs

WINDOW = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Limits:
    """Policy. `cost_day` in device-seconds a rolling 24 hours; `guild_queued` caps what waits for a whole guild."""

    running: int = 3
    queued: int = 7
    cost_day: float = 1800.0
    guild_queued: int | None = None


@dataclass(frozen=True)
class Charge:
    """`cost` device-seconds charged at the moment `at` (seconds since 1970)."""

    at: float
    cost: float


@dataclass(frozen=True)
class Usage:
    """Facts about one member. `running` counts jobs that left the queue; `next_free`: when the first of them ends.

    `workers`: whether anybody is there to run anything.
    """

    running: int = 0
    queued: int = 0
    charges: tuple[Charge, ...] = ()
    guild_queued: int = 0
    next_free: float | None = None
    workers: bool = True

    def spent(self, now: float) -> float:
        """Device-seconds charged in the 24 hours before `now`."""
        return sum(charge.cost for charge in self.charges if charge.at > now - WINDOW)


def check(limits: Limits, usage: Usage, cost: float, now: float, *, count: int = 1) -> None:
    """Returns if `count` more jobs of `cost` device-seconds in all may be taken. Raises `Refused` (429) otherwise."""
    _check_places(limits, usage, now, count)
    _check_guild(limits, usage, now, count)
    _check_cost(limits, usage, cost, now)


def _check_places(limits: Limits, usage: Usage, now: float, count: int) -> None:
    places = limits.running + limits.queued
    used = usage.running + usage.queued
    if used + count <= places:
        return
    rule = f"at most {limits.running} of yours run at once and {limits.queued} more wait"
    if count > places:
        raise Refused(f"{_these(count)} too many at once: {rule}.", 429)
    state = f"you have {usage.running} running and {usage.queued} waiting"
    asked = f", and this makes {jobs(count)}" if count > 1 else ""
    frees = _soon(usage, now)
    raise Refused(f"Your queue is full: {rule}; {state}{asked}. A place frees {frees}.", 429, frees=usage.next_free)


def _these(count: int) -> str:
    return f"{count} jobs are" if count != 1 else "A job is"


def _check_guild(limits: Limits, usage: Usage, now: float, count: int) -> None:
    if limits.guild_queued is None or usage.guild_queued + count <= limits.guild_queued:
        return
    raise Refused(
        f"This server's queue is full: {usage.guild_queued} of {limits.guild_queued} waiting jobs are taken. "
        f"A place frees {_soon(usage, now)}.",
        429,
        frees=usage.next_free,
    )


def _soon(usage: Usage, now: float) -> str:
    if usage.next_free is not None:
        return f"in about {duration(usage.next_free - now)}"
    return "when a job before it is done" if usage.workers else "when a worker comes"


def _check_cost(limits: Limits, usage: Usage, cost: float, now: float) -> None:
    spent = usage.spent(now)
    if spent + cost <= limits.cost_day:
        return
    needs = f"this needs {duration(cost)} of device time"
    if cost > limits.cost_day:
        limit = f"your limit is {duration(limits.cost_day)} in 24 hours"
        raise Refused(f"Too large: {needs}, and {limit}. Fewer --steps cost less.", 429)
    frees = _affordable(limits, usage, cost, now)
    raise Refused(
        f"Your day's limit is reached: {duration(spent)} of {duration(limits.cost_day)} device time used in the last "
        f"24 hours, and {needs}. Enough frees in about {duration(frees - now)}.",
        429,
        frees=frees,
    )


def _affordable(limits: Limits, usage: Usage, cost: float, now: float) -> float:
    """The first moment at which enough old charges have left the window; `cost` alone is within the limit."""
    recent = sorted((charge for charge in usage.charges if charge.at > now - WINDOW), key=lambda charge: charge.at)
    spent = sum(charge.cost for charge in recent)
    for charge in recent:
        spent -= charge.cost
        if spent + cost <= limits.cost_day:
            return charge.at + WINDOW
    return now
