"""How often one may ask: each action's price, and the token buckets that it is paid from. Pure but for the clock.

These rates hold back floods. They lie far above what a person does; the limits on jobs and device time are elsewhere
(`bot.policy.limits`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from cachetools import TTLCache

from bot.domain.errors import UserError
from bot.domain.feature import load_features, merge_rows
from bot.domain.permission import Action, BucketKind, Price
from bot.domain.texts import format_duration

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
