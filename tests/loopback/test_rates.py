"""The rate limits count as Discord's: they refuse only a client that ignores the headers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.loopback.rates import BLOCK_SECONDS, GLOBAL, INVALID, Rates, Verdict

EDIT = "/channels/1/messages/2"
TOKEN = "/webhooks/7/{}/messages/@original"
pause_lists = st.lists(st.floats(0, 3, allow_nan=False), min_size=1, max_size=60)


def count_request(rates: Rates, method: str, path: str, now: float) -> Verdict:
    return rates.count_request(method, path, now, 1e9 + now)


@given(pause_lists)
def test_no_window_accepts_more_than_the_limit(pauses: list[float]) -> None:
    """The headers of every answer also predict the next one."""
    rates = Rates()
    now = 0.0
    accepted = list[float]()
    for pause in pauses:
        now += pause
        verdict = count_request(rates, "PATCH", EDIT, now)
        headers = {name.removeprefix("X-RateLimit-"): value for name, value in verdict.headers.items()}
        assert headers["Limit"] == "5"
        assert 0 < float(headers["Reset-After"]) <= 5.001
        assert math.isclose(float(headers["Reset"]), 1e9 + now + float(headers["Reset-After"]), abs_tol=0.01)
        if verdict.retry_after is None:
            accepted.append(now)
        else:
            assert headers["Remaining"] == "0"
            assert count_request(rates, "PATCH", EDIT, now + verdict.retry_after).retry_after is None
            now += verdict.retry_after
            accepted.append(now)
    first_times = accepted[:1]
    for time in accepted:
        if time >= first_times[-1] + 5.0:
            first_times.append(time)
    for first in first_times:
        assert sum(first <= time < first + 5.0 for time in accepted) <= 5


@pytest.mark.slow
@given(pause_lists)
def test_a_client_that_follows_the_headers_is_never_refused(pauses: list[float]) -> None:
    rates = Rates()
    now = 0.0
    allowed_at = 0.0
    for pause in pauses:
        now = max(now + pause, allowed_at)
        verdict = count_request(rates, "PATCH", EDIT, now)
        assert verdict.retry_after is None
        if verdict.headers["X-RateLimit-Remaining"] == "0":
            allowed_at = now + float(verdict.headers["X-RateLimit-Reset-After"]) + 0.001
    assert rates.refused_count == 0


def test_each_token_and_each_channel_has_its_own_bucket() -> None:
    rates = Rates()
    for _ in range(5):
        for path in (TOKEN.format("a"), TOKEN.format("b"), "/channels/1/messages/3", "/channels/9/messages/3"):
            assert count_request(rates, "PATCH", path, 0.0).retry_after is None
        assert count_request(rates, "POST", "/channels/1/messages", 0.0).retry_after is None
    for path in (TOKEN.format("a"), TOKEN.format("b"), "/channels/1/messages/4", "/channels/9/messages/8"):
        assert count_request(rates, "PATCH", path, 1.0).retry_after == 4.0
    assert count_request(rates, "POST", "/channels/1/messages", 1.0).retry_after == 4.0
    bucket_names = [
        count_request(rates, "PATCH", TOKEN.format(name), 9.0).headers["X-RateLimit-Bucket"] for name in "abc"
    ]
    assert len(set(bucket_names)) == 1  # the bucket names the route; the client adds the channel or token


def test_interactions_do_not_count_against_the_global_limit() -> None:
    rates = Rates()
    for number in range(200):
        assert count_request(rates, "POST", f"/interactions/{number}/t/callback", 0.0) == Verdict()
        assert count_request(rates, "PATCH", TOKEN.format(number), 0.0).retry_after is None
    verdicts = [count_request(rates, "GET", f"/users/{number}", 0.5) for number in range(GLOBAL + 1)]
    assert [one.retry_after for one in verdicts] == [None] * GLOBAL + [1.0]
    assert verdicts[-1].is_global
    assert verdicts[-1].headers["X-RateLimit-Global"] == "true"
    assert count_request(rates, "PATCH", TOKEN.format("x"), 0.5).retry_after is None
    assert count_request(rates, "GET", "/users/1", 1.5).retry_after is None


def test_too_many_invalid_requests_block_the_address() -> None:
    def make_rates(count: int, step: float) -> Any:
        rates = Rates()
        for number in range(count):
            rates.count_answer((401, 403, 429)[number % 3], number * step)
        return rates

    assert not count_request(make_rates(INVALID - 1, 0.0), "GET", "/users/1", 1.0).is_blocked
    assert not count_request(make_rates(INVALID, 0.1), "GET", "/users/1", INVALID * 0.1).is_blocked  # within 17 minutes
    rates = make_rates(INVALID, 0.0)
    assert count_request(rates, "PATCH", TOKEN.format("a"), 1.0).is_blocked
    assert not count_request(rates, "PATCH", TOKEN.format("a"), BLOCK_SECONDS + 1.0).is_blocked
    for status in (200, 404, 500):
        rates.count_answer(status, BLOCK_SECONDS + 2.0)
    assert rates.invalid_count == INVALID - 1
