"""Rates: every action has a price, a flood is held back, and waiting fills the bucket again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.discord.declarations import list_command_actions
from bot.domain.feature import merge_rows
from bot.policy.limits import FILL_SECONDS, OTHER_ACTIONS, PRICES, RATES, TokenBuckets, too_often
from bot.policy.permissions import KEY_SCOPES, PERMISSIONS
from bot.web.app import list_routes
from shared.clock import Clock


def test_every_action_has_a_price_that_a_full_bucket_pays() -> None:
    assert set(PRICES) == set(PERMISSIONS) | set(OTHER_ACTIONS)
    assert all(0 < price.tokens <= RATES[price.kind].burst / 2 for price in PRICES.values())


def test_every_route_and_command_names_a_row_and_every_scope_is_declared() -> None:
    """Actions and scopes are plain text, since features add their own: a mistyped one fails here."""
    assert {route.action for _, route in list_routes()} <= set(PRICES)
    assert set(list_command_actions().values()) <= set(PERMISSIONS)
    assert {row.scope for row in PERMISSIONS.values() if row.scope} == set(KEY_SCOPES)
    with pytest.raises(ValueError, match="two rows for imagine"):
        merge_rows(PERMISSIONS, {"imagine": PERMISSIONS["help"]})


def test_a_flood_is_refused_and_says_when_it_may_go_on() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    assert [buckets.take("ann", "describe") for _ in range(4)] == [0.0] * 4
    assert buckets.take("ann", "describe") == pytest.approx(10.0)
    assert buckets.take("bob", "describe") == 0.0, "another member has another bucket"
    assert buckets.take("ann", "queue") == 0.0, "looking has another bucket than making"
    clock.now = 9.0
    assert buckets.take("ann", "describe") == pytest.approx(1.0), "a refusal costs nothing"
    clock.now = 10.0
    assert buckets.take("ann", "describe") == 0.0
    refusal = too_often(1.2)
    assert (refusal.status, refusal.sentence) == (429, "That is too much at once: try again in about 2 s.")


@given(st.lists(st.floats(0.0, FILL_SECONDS * 1.5), min_size=1, max_size=60))
def test_nobody_ever_gets_more_than_the_burst_and_the_rate(pauses: list[float]) -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    taken = 0.0
    for pause in pauses:
        clock.now += pause
        for _ in range(3):
            taken += PRICES["describe"].tokens * (buckets.take("ann", "describe") == 0.0)
    assert taken <= RATES["make"].burst + clock.now * RATES["make"].per_second + 1e-6
