"""Limit checks: the defaults, usage and charges, and the sentence for a member who reaches a limit.

Shipped defaults: of each member 3 jobs run at once and 7 more wait (the eleventh is refused), as at Midjourney; and
1800 calibrated device-seconds in any 24 hours: half an hour of the machine, some tens of the embedded model's grids at
all steps. The windows roll: a charge counts for 24 hours (or 30 days) after it was made, so there is no rush at
midnight and no time zone. A job is charged its estimated cost when it is admitted and its true cost when it ends
(`engine.job.cost`). Times are in seconds since 1970, costs in device-seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bot.refused import Refused
from bot.sentences import duration, jobs

DAY = 24 * 3600.0  # seconds
MONTH = 30 * DAY
WINDOWS = {DAY: "24 hours", MONTH: "30 days"}
ROUNDING = 1e-6  # device-seconds: tolerance for sums of charges
PERIODS = {DAY: "day", MONTH: "month"}


@dataclass(frozen=True)
class Limits:
    """The defaults for a member. `cost_day`: device-seconds in a rolling 24 hours."""

    running: int = 3
    queued: int = 7
    cost_day: float = 1800.0


@dataclass(frozen=True)
class Charge:
    """`cost` device-seconds charged at `at` (seconds since 1970)."""

    at: float
    cost: float


@dataclass(frozen=True)
class Usage:
    """Counts of running and waiting jobs. `running` counts jobs that left the queue; `next_free`: when the first one
    ends.

    `workers`: whether any worker is online.
    """

    running: int = 0
    queued: int = 0
    next_free: float | None = None
    workers: bool = True

    def soon(self, now: float) -> str:
        """Say when a place frees."""
        if self.next_free is not None:
            return f"in about {duration(self.next_free - now)}"
        return "when a job before it is done" if self.workers else "when a worker comes"


@dataclass(frozen=True)
class Spending:
    """The cost charged in the `window` seconds before now.

    `leaves(excess)`: when the oldest charges that sum to at least `excess` will have left the window.
    """

    spent: float
    window: float
    leaves: Callable[[float], float]


def spending(charges: Iterable[Charge], now: float, window: float = DAY) -> Spending:
    """Sum the charges within the window."""
    recent = sorted((charge for charge in charges if charge.at > now - window), key=lambda charge: charge.at)

    def leaves(excess: float) -> float:
        gone = 0.0
        for charge in recent:
            gone += charge.cost
            if gone >= excess:
                return charge.at + window
        return recent[-1].at + window if recent else now

    return Spending(sum(charge.cost for charge in recent), window, leaves)


def check_places(running: int, queued: int, usage: Usage, now: float, *, count: int = 1, by: str = "") -> None:
    """Check that a member may have `count` more jobs. `by`: a sentence on who set the limit. Raises `Refused` (429)."""
    used = usage.running + usage.queued
    if used + count <= running + queued:
        return
    rule = f"at most {running} of yours {'run' if running != 1 else 'runs'} at once and {queued} more wait"
    if count > running + queued:
        raise Refused(_joined(f"{_these(count)} too many at once: {rule}.", by), 429)
    state = f"you have {usage.running} running and {usage.queued} waiting"
    asked = f", and this makes {jobs(count)}" if count > 1 else ""
    said = f"Your queue is full: {rule}; {state}{asked}. A place frees {usage.soon(now)}."
    raise Refused(_joined(said, by), 429, frees=usage.next_free)


def _these(count: int) -> str:
    return f"{count} jobs are" if count != 1 else "A job is"


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def check_waiting(most: int, usage: Usage, now: float, *, whose: str, count: int = 1, by: str = "") -> None:
    """Check that `count` more jobs may wait where all members count together. `whose`: "This server's". Raises
    `Refused`.

    The fair order decides whose job starts next, so `next_free` is only the earliest time at which any job may start.
    """
    if usage.queued + count <= most:
        return
    said = f"{whose} queue is full: {usage.queued} of {most} waiting jobs are taken"
    said += f", and this makes {jobs(count)}." if count > 1 else "."
    earliest = " at the earliest" if usage.next_free is not None else ""
    raise Refused(_joined(said, f"A place frees {usage.soon(now)}{earliest}.", by), 429)


def check_cost(limit: float, used: Spending, cost: float, now: float, *, whose: str = "Your", by: str = "") -> None:
    """Check that `cost` more may be spent. `whose`: "Your", "This server's", … Raises `Refused` (429)."""
    if used.spent + cost <= limit + ROUNDING:
        return
    needs, window = f"this needs {duration(cost)} of device time", WINDOWS[used.window]
    if cost > limit:
        said = f"{whose[:1].lower()}{whose[1:]} limit is {_amount(limit)} in {window}"
        raise Refused(_joined(f"Too large: {needs}, and {said}. Fewer --steps cost less.", by), 429)
    frees = used.leaves(used.spent + cost - limit)
    said = (
        f"{whose} {PERIODS[used.window]}'s limit is reached: {_amount(used.spent)} of {_amount(limit)} device time "
        f"used in the last {window}, and {needs}. Enough frees in about {duration(frees - now)}."
    )
    raise Refused(_joined(said, by), 429, frees=frees)


def check_left(limit: float, used: Spending, now: float, *, whose: str = "Your", by: str = "") -> None:
    """Check that anything may be spent. `whose`: "Your", "This server's", … Raises `Refused` (429)."""
    if used.spent < limit:
        return
    window, frees = WINDOWS[used.window], used.leaves(used.spent - limit + ROUNDING) if limit > 0 else None
    said = f"{whose} {PERIODS[used.window]}'s limit is reached: {_amount(used.spent)} of {_amount(limit)} device time "
    said += f"used in the last {window}."
    said += f" Some frees in about {duration(frees - now)}." if frees is not None else ""
    raise Refused(_joined(said, by), 429, frees=frees)


def _amount(seconds: float) -> str:
    return duration(seconds) if seconds > 0 else "0 s"
