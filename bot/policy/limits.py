"""Limits for everybody: what members may spend and have at once, and how often they may ask.

Limit checks: the defaults, usage and charges, and the sentence for a member who reaches a limit.

Shipped defaults: 3 jobs of a member run at once and 7 more wait, as at Midjourney; the eleventh is refused. A member
may spend 1800 calibrated device-seconds in any 24 hours: half an hour of the machine, or some tens of the embedded
model's grids at all steps. The windows roll: a charge counts for 24 hours (or 30 days). So there is no rush at
midnight, and no time zone matters. A job is charged its estimated cost when it is admitted and its true cost when it
ends (`engine.contract.presence`). Relaxed jobs are charged nothing; what they take has a limit of its own: four
hours in any 24. Times are in seconds since 1970, costs in device-seconds.

How often one may ask: each action's price, and the token buckets that it is paid from. Pure but for the clock.

These rates hold back floods. They lie far above what a person does; the limits on jobs and device time are elsewhere
(`bot.policy.limits`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from cachetools import TTLCache

from bot.domain.errors import UserError
from bot.domain.feature import load_features, merge_rows
from bot.domain.permission import Action, BucketKind, Price
from bot.domain.texts import format_duration, format_job_count

DAY_SECONDS = 24 * 3600.0  # seconds
MONTH_SECONDS = 30 * DAY_SECONDS
WINDOW_NAMES = {DAY_SECONDS: "24 hours", MONTH_SECONDS: "30 days"}
COST_TOLERANCE = 1e-6  # device-seconds: tolerance for sums of charges
PERIOD_NAMES = {DAY_SECONDS: "day", MONTH_SECONDS: "month"}


@dataclass(frozen=True)
class Limits:
    """The defaults for a member. `cost_day`: device-seconds in a rolling 24 hours; `relaxed_day`: those of relaxed
    jobs.
    """

    running: int = 3
    queued: int = 7
    cost_day: float = 1800.0
    relaxed_day: float = 14_400.0


@dataclass(frozen=True)
class Charge:
    """`cost` device-seconds charged at `charged_at` (seconds since 1970)."""

    charged_at: float
    cost: float


@dataclass(frozen=True)
class Usage:
    """Counts of running and waiting jobs. `running` counts jobs that left the queue; `next_free_at`: when the first one
    ends.

    `has_workers`: whether any worker is online.
    """

    running: int = 0
    queued: int = 0
    next_free_at: float | None = None
    has_workers: bool = True

    def next_free_text(self, now: float) -> str:
        """Say when a place becomes free."""
        if self.next_free_at is not None:
            return f"in about {format_duration(self.next_free_at - now)}"
        return "when a job before it is done" if self.has_workers else "when a worker comes"


@dataclass(frozen=True)
class Spending:
    """The cost charged in the `window` seconds before now.

    `frees_at(excess)`: when the oldest charges that sum to at least `excess` will have left the window.
    """

    total_cost: float
    window: float
    frees_at: Callable[[float], float]


def sum_spending(charges: Iterable[Charge], now: float, window: float = DAY_SECONDS) -> Spending:
    """Sum the charges within the window."""
    recent = sorted(
        (charge for charge in charges if charge.charged_at > now - window), key=lambda charge: charge.charged_at
    )

    def frees_at(excess: float) -> float:
        freed_cost = 0.0
        for charge in recent:
            freed_cost += charge.cost
            if freed_cost >= excess:
                return charge.charged_at + window
        return recent[-1].charged_at + window if recent else now

    return Spending(sum(charge.cost for charge in recent), window, frees_at)


def check_job_count(running: int, queued: int, usage: Usage, now: float, *, count: int = 1, set_by: str = "") -> None:
    """Check that a member may have `count` more jobs. `set_by`: a sentence on who set the limit. Raises `UserError`
    (429).
    """
    job_count = usage.running + usage.queued
    if job_count + count <= running + queued:
        return
    rule = f"at most {running} of yours {'run' if running != 1 else 'runs'} at once and {queued} more wait"
    if count > running + queued:
        raise UserError(_join_sentences(f"{_too_many_subject(count)} too many at once: {rule}.", set_by), 429)
    state = f"you have {usage.running} running and {usage.queued} waiting"
    request_part = f", and this makes {format_job_count(count)}" if count > 1 else ""
    sentence = f"Your queue is full: {rule}; {state}{request_part}. You can submit again {usage.next_free_text(now)}."
    raise UserError(_join_sentences(sentence, set_by), 429, retry_at=usage.next_free_at)


def _too_many_subject(count: int) -> str:
    return f"{count} jobs are" if count != 1 else "A job is"


def _join_sentences(*sentences: str) -> str:
    return " ".join(part for part in sentences if part)


def check_shared_queue(
    max_waiting: int, usage: Usage, now: float, *, owner: str, count: int = 1, set_by: str = ""
) -> None:
    """Check that `count` more jobs may wait where all members count together. `owner`: "This server's". Raises
    `UserError`.

    The fair order decides whose job starts next, so `next_free_at` is only the earliest time at which a job may start.
    """
    if usage.queued + count <= max_waiting:
        return
    sentence = f"{owner} queue is full: {usage.queued} of {max_waiting} waiting jobs are taken"
    sentence += f", and this makes {format_job_count(count)}." if count > 1 else "."
    qualifier = " at the earliest" if usage.next_free_at is not None else ""
    raise UserError(
        _join_sentences(sentence, f"You can submit again {usage.next_free_text(now)}{qualifier}.", set_by), 429
    )


def check_cost(
    limit: float,
    spending: Spending,
    cost: float,
    now: float,
    *,
    owner: str = "Your",
    set_by: str = "",
    advice: str = "Fewer --steps cost less.",
) -> None:
    """Check that `cost` more may be spent. `owner`: "Your", "This server's", … `advice`: a sentence for a request that
    exceeds the limit alone. Raises `UserError` (429).
    """
    if spending.total_cost + cost <= limit + COST_TOLERANCE:
        return
    need_part = f"this needs {format_duration(cost)} of device time"
    window = WINDOW_NAMES[spending.window]
    if cost > limit:
        sentence = f"{owner[:1].lower()}{owner[1:]} limit is {_format_amount(limit)} in {window}"
        raise UserError(_join_sentences(f"Too large: {need_part}, and {sentence}.", advice, set_by), 429)
    frees_at = spending.frees_at(spending.total_cost + cost - limit)
    sentence = (
        f"{owner} {PERIOD_NAMES[spending.window]}'s limit is reached: {_format_amount(spending.total_cost)} of "
        f"{_format_amount(limit)} device time "
        f"used in the last {window}, and {need_part}. "
        f"Enough quota is available again in about {format_duration(frees_at - now)}."
    )
    raise UserError(_join_sentences(sentence, set_by), 429, retry_at=frees_at)


def check_cost_left(limit: float, spending: Spending, now: float, *, owner: str = "Your", set_by: str = "") -> None:
    """Check that anything may be spent. `owner`: "Your", "This server's", … Raises `UserError` (429)."""
    if spending.total_cost < limit:
        return
    window = WINDOW_NAMES[spending.window]
    frees_at = spending.frees_at(spending.total_cost - limit + COST_TOLERANCE) if limit > 0 else None
    sentence = (
        f"{owner} {PERIOD_NAMES[spending.window]}'s limit is reached: {_format_amount(spending.total_cost)} of "
        f"{_format_amount(limit)} device time "
    )
    sentence += f"used in the last {window}."
    sentence += (
        f" Some quota is available again in about {format_duration(frees_at - now)}." if frees_at is not None else ""
    )
    raise UserError(_join_sentences(sentence, set_by), 429, retry_at=frees_at)


def _format_amount(seconds: float) -> str:
    return format_duration(seconds) if seconds > 0 else "0 s"


# What is asked for besides the actions of the permission table: a page, a file such as a picture, one job, a list, a
# stream of events, suggestions while one types, any request of a public address, and an invalid key.
OTHER_ACTIONS = ("page", "file", "job", "list", "stream", "suggest", "review", "stranger", "guess")
MAX_BUCKETS = 50_000  # buckets of a kind in memory; with more, the one used longest ago is forgotten


class Rate(NamedTuple):
    """A bucket's size, and how many tokens it gains in a second."""

    burst: float
    per_second: float


RATES: Mapping[BucketKind, Rate] = MappingProxyType(
    {
        "look": Rate(600.0, 40.0),
        "change": Rate(60.0, 2.0),
        "steer": Rate(60.0, 10.0),  # a slider that is dragged sends ten changes a second
        "make": Rate(40.0, 1.0),
        "stranger": Rate(1000.0, 200.0),  # of one public address
        "guess": Rate(20.0, 0.5),  # keys that are not valid, of one address
    }
)
FILL_SECONDS = max(rate.burst / rate.per_second for rate in RATES.values())  # after it, every bucket is full
CORE_PRICES: Mapping[Action, Price] = MappingProxyType(
    {
        **dict.fromkeys(("file", "suggest"), Price("look", 1.0)),
        **dict.fromkeys(("job", "page"), Price("look", 2.0)),
        **dict.fromkeys(("list", "stream"), Price("look", 10.0)),
        **dict.fromkeys(("queue", "mine", "info", "help", "details", "film"), Price("look", 20.0)),
        **dict.fromkeys(("settings", "explain", "review"), Price("look", 20.0)),
        **dict.fromkeys(("cancel", "pause", "favourite", "prefer", "delete"), Price("change", 1.0)),
        **dict.fromkeys(("approve", "deny", "dismiss", "set", "close", "budget"), Price("change", 1.0)),
        **dict.fromkeys(("report", "envelope"), Price("change", 5.0)),
        **dict.fromkeys(("imagine", "blend", "upscale", "vary", "reroll", "remix", "reproduce"), Price("make", 1.0)),
        **dict.fromkeys(("finish", "edit", "zoom", "pan", "branch", "walk"), Price("make", 1.0)),
        "steer": Price("steer", 1.0),
        "prompt": Price("make", 4.0),  # /shorten has a worker read texts
        "describe": Price("make", 10.0),
        "stranger": Price("stranger", 1.0),
        "guess": Price("guess", 1.0),
    }
)
PRICES: Mapping[Action, Price] = MappingProxyType(
    merge_rows(CORE_PRICES, *(feature.prices for feature in load_features().values()))
)


class TokenBuckets:
    """The buckets of all who ask. `clock`: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: Mapping[BucketKind, TTLCache[str, tuple[float, float]]] = {  # tokens, at which time; by payer
            kind: TTLCache(MAX_BUCKETS, FILL_SECONDS, timer=clock) for kind in RATES
        }

    def take(self, payer: str, action: Action) -> float:
        """Take the action's price from `payer`'s bucket. Return 0, or after how many seconds the bucket has enough."""
        price = PRICES[action]
        now = self._clock()
        buckets, (burst, per_second) = self._buckets[price.kind], RATES[price.kind]
        tokens, since = buckets.get(payer, (burst, now))
        tokens = min(burst, tokens + (now - since) * per_second)
        if tokens < price.tokens:
            return (price.tokens - tokens) / per_second
        buckets[payer] = tokens - price.tokens, now
        return 0.0


def too_often(seconds: float) -> UserError:
    """Return the refusal (429) for one who may ask again in so many seconds."""
    sentence = f"That is too much at once: try again in about {format_duration(seconds)}."
    return UserError(sentence, 429, retry_at=time.time() + seconds)
