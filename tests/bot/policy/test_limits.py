"""Limits: the eleventh job is refused, windows roll, and a refusal names the true time when quota frees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain.errors import UserError
from bot.policy.limits import (
    COST_TOLERANCE,
    DAY_SECONDS,
    MONTH_SECONDS,
    Charge,
    Limits,
    Usage,
    check_cost,
    check_job_count,
    check_shared_queue,
    sum_spending,
)

NOW = 1_800_000_000.0
DEFAULTS = Limits()


def check_answer(check: Callable[[], None]) -> UserError | None:
    try:
        check()
    except UserError as error:
        return error
    return None


def refusal(check: Callable[[], None]) -> UserError:
    error = check_answer(check)
    assert error is not None
    assert error.status == 429
    return error


def queue_check(usage: Usage, *, count: int = 1, set_by: str = "") -> Callable[[], None]:
    return lambda: check_job_count(DEFAULTS.running, DEFAULTS.queued, usage, NOW, count=count, set_by=set_by)


def cost_check(
    charges: list[Charge],
    cost: float,
    *,
    limit: float = DEFAULTS.cost_day,
    window: float = DAY_SECONDS,
    now: float = NOW,
    **options: str,
) -> Callable[[], None]:
    return lambda: check_cost(limit, sum_spending(charges, now, window), cost, now, **options)


def test_default_limits() -> None:
    assert Limits(running=3, queued=7, cost_day=1800.0) == DEFAULTS


def test_three_run_seven_wait_and_the_eleventh_is_refused() -> None:
    for jobs in range(10):
        queue_check(Usage(running=min(3, jobs), queued=max(0, jobs - 3)))()
    error = refusal(queue_check(Usage(running=3, queued=7, next_free_at=NOW + 90)))
    assert error.sentence == (
        "Your queue is full: at most 3 of yours run at once and 7 more wait; you have 3 running and 7 waiting. "
        "You can submit again in about 1 min 30 s."
    )
    assert error.retry_at == NOW + 90


def test_ten_may_wait_while_nothing_runs() -> None:
    queue_check(Usage(running=0, queued=9))()
    assert "0 running and 10 waiting" in refusal(queue_check(Usage(queued=10))).sentence


def test_without_a_worker_a_refusal_names_no_time() -> None:
    assert (
        "You can submit again when a worker comes."
        in refusal(queue_check(Usage(queued=10, has_workers=False))).sentence
    )
    assert "You can submit again when a job before it is done." in refusal(queue_check(Usage(queued=10))).sentence


def test_permutations_count_together() -> None:
    queue_check(Usage(running=3, queued=3), count=4)()
    assert "and this makes 5 jobs" in refusal(queue_check(Usage(running=3, queued=3), count=5)).sentence
    assert "11 jobs are too many at once" in refusal(queue_check(Usage(), count=11)).sentence


def test_a_server_can_have_its_own_queue_limit() -> None:
    check_shared_queue(20, Usage(queued=19), NOW, owner="This server's")
    error = refusal(
        lambda: check_shared_queue(20, Usage(queued=20), NOW, owner="This server's", set_by="Ann set that.")
    )
    assert error.sentence == (
        "This server's queue is full: 20 of 20 waiting jobs are taken. You can submit again when a job before it is "
        "done. Ann set that."
    )
    shared_error = refusal(
        lambda: check_shared_queue(20, Usage(queued=20, next_free_at=NOW + 9), NOW, owner="This server's")
    )
    assert shared_error.sentence.endswith("You can submit again in about 9 s at the earliest.")
    assert shared_error.retry_at is None


def test_the_daily_quota_has_a_rolling_window() -> None:
    cost_check([Charge(NOW - DAY_SECONDS, 1800.0)], 1800.0)()
    error = refusal(cost_check([Charge(NOW - DAY_SECONDS + 3600, 1000.0), Charge(NOW - 60, 700.0)], 200.0))
    assert error.sentence == (
        "Your day's limit is reached: 28 min 20 s of 30 min device time used in the last 24 hours, and this needs "
        "3 min 20 s of device time. Enough quota is available again in about 1 h."
    )
    assert error.retry_at == NOW + 3600


def test_the_monthly_quota_has_a_rolling_window() -> None:
    cost_check([Charge(NOW - MONTH_SECONDS, 1800.0)], 1800.0, window=MONTH_SECONDS)()
    error = refusal(
        cost_check([Charge(NOW - MONTH_SECONDS + 3600, 1800.0)], 60.0, window=MONTH_SECONDS, owner="This server's")
    )
    assert error.sentence == (
        "This server's month's limit is reached: 30 min of 30 min device time used in the last 30 days, and this needs "
        "1 min of device time. Enough quota is available again in about 1 h."
    )


def test_a_job_above_the_whole_quota_is_refused_without_a_time() -> None:
    error = refusal(cost_check([], 2000.0, set_by="Ann set that."))
    assert error.sentence == (
        "Too large: this needs 33 min 20 s of device time, and your limit is 30 min in 24 hours. Fewer --steps cost "
        "less. Ann set that."
    )
    assert error.retry_at is None


charges = st.lists(
    st.builds(Charge, charged_at=st.floats(NOW - 2 * DAY_SECONDS, NOW), cost=st.floats(0, 2000)), max_size=20
)


@settings(deadline=None)
@given(charges, st.floats(0, 1800))
def test_a_refused_job_is_admitted_when_quota_frees(charges: list[Charge], cost: float) -> None:
    error = check_answer(cost_check(charges, cost))
    if error is None:
        assert sum_spending(charges, NOW).total_cost + cost <= DEFAULTS.cost_day + COST_TOLERANCE
        return
    assert error.retry_at is not None
    assert NOW < error.retry_at <= NOW + DAY_SECONDS
    cost_check(charges, cost, now=error.retry_at)()


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 10))
def test_fewer_jobs_are_never_refused_where_more_are_admitted(running_jobs: int, queued: int, count: int) -> None:
    error = check_answer(queue_check(Usage(running_jobs, queued), count=count))
    if error is not None:
        assert len(error.sentence) <= 300
        return
    queue_check(Usage(max(0, running_jobs - 1), queued))()


@settings(deadline=None)
@given(charges, st.floats(0, 3000))
def test_a_cheaper_job_is_never_refused_where_a_dearer_one_is_admitted(charges: list[Charge], cost: float) -> None:
    error = check_answer(cost_check(charges, cost))
    if error is not None:
        assert len(error.sentence) <= 300
        return
    cost_check(charges[1:], cost / 2)()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_limit_of_zero_or_almost_zero_holds(limit: float) -> None:
    assert "Too large" in refusal(cost_check([], 2.0, limit=limit)).sentence
