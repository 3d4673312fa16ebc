"""Limits: the eleventh job is refused, the windows roll, and a refusal's promise of when it frees holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.limits import (
    DAY,
    MONTH,
    ROUNDING,
    Charge,
    Limits,
    Usage,
    check_cost,
    check_places,
    check_waiting,
    spending,
)
from bot.refused import Refused

NOW = 1_800_000_000.0
SHIPPED = Limits()


def answer(check: Callable[[], None]) -> Refused | None:
    try:
        check()
    except Refused as refused:
        return refused
    return None


def refusal(check: Callable[[], None]) -> Refused:
    refused = answer(check)
    assert refused is not None
    assert refused.status == 429
    return refused


def places(usage: Usage, *, count: int = 1, by: str = "") -> Callable[[], None]:
    return lambda: check_places(SHIPPED.running, SHIPPED.queued, usage, NOW, count=count, by=by)


def price(
    spent: list[Charge], cost: float, *, limit: float = SHIPPED.cost_day, window: float = DAY, now: float = NOW,
    **said: str,
) -> Callable[[], None]:  # fmt: skip
    return lambda: check_cost(limit, spending(spent, now, window), cost, now, **said)


def test_what_ships() -> None:
    assert Limits(running=3, queued=7, cost_day=1800.0) == SHIPPED


def test_three_run_seven_wait_and_the_eleventh_is_refused() -> None:
    for taken in range(10):
        places(Usage(running=min(3, taken), queued=max(0, taken - 3)))()
    refused = refusal(places(Usage(running=3, queued=7, next_free=NOW + 90)))
    assert refused.sentence == (
        "Your queue is full: at most 3 of yours run at once and 7 more wait; you have 3 running and 7 waiting. "
        "A place frees in about 1 min 30 s."
    )
    assert refused.frees == NOW + 90


def test_ten_may_wait_while_nothing_runs() -> None:
    places(Usage(running=0, queued=9))()
    assert "0 running and 10 waiting" in refusal(places(Usage(queued=10))).sentence


def test_without_a_worker_nobody_promises_a_place() -> None:
    assert "A place frees when a worker comes." in refusal(places(Usage(queued=10, workers=False))).sentence
    assert "A place frees when a job before it is done." in refusal(places(Usage(queued=10))).sentence


def test_permutations_count_together() -> None:
    places(Usage(running=3, queued=3), count=4)()
    assert "and this makes 5 jobs" in refusal(places(Usage(running=3, queued=3), count=5)).sentence
    assert "11 jobs are too many at once" in refusal(places(Usage(), count=11)).sentence


def test_a_server_may_have_a_limit_of_its_own() -> None:
    check_waiting(20, Usage(queued=19), NOW, whose="This server's")
    refused = refusal(lambda: check_waiting(20, Usage(queued=20), NOW, whose="This server's", by="Ann set that."))
    assert refused.sentence == (
        "This server's queue is full: 20 of 20 waiting jobs are taken. A place frees when a job before it is done. "
        "Ann set that."
    )
    soon = refusal(lambda: check_waiting(20, Usage(queued=20, next_free=NOW + 9), NOW, whose="This server's"))
    assert soon.sentence.endswith("A place frees in about 9 s at the earliest.")
    assert soon.frees is None


def test_the_day_rolls() -> None:
    price([Charge(NOW - DAY, 1800.0)], 1800.0)()
    refused = refusal(price([Charge(NOW - DAY + 3600, 1000.0), Charge(NOW - 60, 700.0)], 200.0))
    assert refused.sentence == (
        "Your day's limit is reached: 28 min 20 s of 30 min device time used in the last 24 hours, and this needs "
        "3 min 20 s of device time. Enough frees in about 1 h."
    )
    assert refused.frees == NOW + 3600


def test_the_month_rolls_too() -> None:
    price([Charge(NOW - MONTH, 1800.0)], 1800.0, window=MONTH)()
    refused = refusal(price([Charge(NOW - MONTH + 3600, 1800.0)], 60.0, window=MONTH, whose="This server's"))
    assert refused.sentence == (
        "This server's month's limit is reached: 30 min of 30 min device time used in the last 30 days, and this needs "
        "1 min of device time. Enough frees in about 1 h."
    )


def test_what_can_never_fit_says_so_and_not_when() -> None:
    refused = refusal(price([], 2000.0, by="Ann set that."))
    assert refused.sentence == (
        "Too large: this needs 33 min 20 s of device time, and your limit is 30 min in 24 hours. Fewer --steps cost "
        "less. Ann set that."
    )
    assert refused.frees is None


charges = st.lists(st.builds(Charge, at=st.floats(NOW - 2 * DAY, NOW), cost=st.floats(0, 2000)), max_size=20)


@settings(deadline=None)
@given(charges, st.floats(0, 1800))
def test_what_is_refused_now_is_taken_when_it_frees(spent: list[Charge], cost: float) -> None:
    refused = answer(price(spent, cost))
    if refused is None:
        assert spending(spent, NOW).spent + cost <= SHIPPED.cost_day + ROUNDING
        return
    assert refused.frees is not None
    assert NOW < refused.frees <= NOW + DAY
    price(spent, cost, now=refused.frees)()


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 10))
def test_fewer_jobs_are_never_refused_where_more_were_taken(running: int, queued: int, count: int) -> None:
    refused = answer(places(Usage(running, queued), count=count))
    if refused is not None:
        assert len(refused.sentence) <= 300
        return
    places(Usage(max(0, running - 1), queued))()


@settings(deadline=None)
@given(charges, st.floats(0, 3000))
def test_less_is_never_refused_where_more_was_taken(spent: list[Charge], cost: float) -> None:
    refused = answer(price(spent, cost))
    if refused is not None:
        assert len(refused.sentence) <= 300
        return
    price(spent[1:], cost / 2)()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_limit_of_nothing_is_a_limit(limit: float) -> None:
    assert "Too large" in refusal(price([], 2.0, limit=limit)).sentence
