"""Limits: the eleventh job is refused, the day is a rolling one, and a refusal's promise of when it frees holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.limits import WINDOW, Charge, Limits, Usage, check
from bot.refused import Refused

NOW = 1_800_000_000.0
SHIPPED = Limits()


def answer(usage: Usage, cost: float = 1.0, *, limits: Limits = SHIPPED, count: int = 1) -> Refused | None:
    try:
        check(limits, usage, cost, NOW, count=count)
    except Refused as refused:
        return refused
    return None


def refusal(usage: Usage, cost: float = 1.0, *, limits: Limits = SHIPPED, count: int = 1) -> Refused:
    refused = answer(usage, cost, limits=limits, count=count)
    assert refused is not None
    assert refused.status == 429
    return refused


def test_what_ships() -> None:
    assert Limits(running=3, queued=7, cost_day=1800.0, guild_queued=None) == SHIPPED


def test_three_run_seven_wait_and_the_eleventh_is_refused() -> None:
    for taken in range(10):
        check(SHIPPED, Usage(running=min(3, taken), queued=max(0, taken - 3)), 1.0, NOW)
    refused = refusal(Usage(running=3, queued=7, next_free=NOW + 90))
    assert refused.sentence == (
        "Your queue is full: at most 3 of yours run at once and 7 more wait; you have 3 running and 7 waiting. "
        "A place frees in about 1 min 30 s."
    )
    assert refused.frees == NOW + 90


def test_ten_may_wait_while_nothing_runs() -> None:
    check(SHIPPED, Usage(running=0, queued=9), 1.0, NOW)
    assert "0 running and 10 waiting" in refusal(Usage(queued=10)).sentence


def test_permutations_count_together() -> None:
    check(SHIPPED, Usage(running=3, queued=3), 1.0, NOW, count=4)
    assert "and this makes 5 jobs" in refusal(Usage(running=3, queued=3), count=5).sentence
    assert "11 jobs are too many at once" in refusal(Usage(), count=11).sentence


def test_a_server_may_have_a_limit_of_its_own() -> None:
    capped = Limits(guild_queued=20)
    check(capped, Usage(guild_queued=19), 1.0, NOW)
    assert "20 of 20 waiting jobs" in refusal(Usage(guild_queued=20), limits=capped).sentence


def test_the_day_rolls() -> None:
    old = Charge(NOW - WINDOW, 1800.0)
    check(SHIPPED, Usage(charges=(old,)), 1800.0, NOW)
    refused = refusal(Usage(charges=(Charge(NOW - WINDOW + 3600, 1000.0), Charge(NOW - 60, 700.0))), 200.0)
    assert refused.sentence == (
        "Your day's limit is reached: 28 min 20 s of 30 min device time used in the last 24 hours, and this needs "
        "3 min 20 s of device time. Enough frees in about 1 h."
    )
    assert refused.frees == NOW + 3600


def test_what_can_never_fit_says_so_and_not_when() -> None:
    refused = refusal(Usage(), 2000.0)
    assert "Too large" in refused.sentence
    assert refused.frees is None


charges = st.lists(st.builds(Charge, at=st.floats(NOW - 2 * WINDOW, NOW), cost=st.floats(0, 2000)), max_size=20)


@settings(deadline=None)
@given(charges, st.floats(0, 1800))
def test_what_is_refused_now_is_taken_when_it_frees(spent: list[Charge], cost: float) -> None:
    usage = Usage(charges=tuple(spent))
    refused = answer(usage, cost)
    if refused is None:
        assert usage.spent(NOW) + cost <= SHIPPED.cost_day
        return
    assert refused.frees is not None
    assert NOW < refused.frees <= NOW + WINDOW
    check(SHIPPED, usage, cost, refused.frees)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 10), charges, st.floats(0, 3000))
def test_less_use_is_never_refused_where_more_was_taken(
    running: int, queued: int, count: int, spent: list[Charge], cost: float
) -> None:
    refused = answer(Usage(running, queued, tuple(spent)), cost, count=count)
    if refused is not None:
        assert len(refused.sentence) <= 300
        return
    check(SHIPPED, Usage(max(0, running - 1), queued, tuple(spent[1:])), cost / 2, NOW, count=1)
