"""Members with few rows keep their pace beside a member with many, at the cost of few rows a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated_day import FORWARD_MS
from engine.batching.group import (
    MIN_THROUGHPUT_SHARE,
    Demand,
    ForwardTimes,
    StepTimeLimiter,
    efficient_ms,
    efficient_sizes,
    forward_ms,
)
from engine.batching.scheduler import Scheduler
from engine.contract import BillingKey

SIZES = (1, 2, 4, 8, 16, 32)
STEPS = 200
LIGHT = {1: 11.7, 2: 17.1, 4: 25.4, 8: 41.7, 16: 74.3, 32: 138.1}  # the embedded model on two cores


@st.composite
def forward_times(draw: st.DrawFn) -> dict[int, float]:
    """Milliseconds by rows: a batch takes at most as long as its halves in turn, and at least as long as one half."""
    times = {1: draw(st.floats(1.0, 100.0))}
    for size in SIZES[1:]:
        times[size] = times[size // 2] * draw(st.floats(1.0, 2.0))
    return times


@dataclass(eq=False)
class Image:
    """An image without a last step."""

    job: str
    billing_key: BillingKey
    forward_times: ForwardTimes = field(default_factory=dict)
    row_ms: float = 1.0
    rows: int = 2
    key: str = "one model"
    k: int = 0


def image(user: str, number: int, times: ForwardTimes) -> Image:
    return Image(f"{user} {number}", BillingKey("t", "g", user), times)


def run(images: list[Image], limit: int, times: ForwardTimes) -> tuple[float, dict[str, int]]:
    """Runs many steps; returns the milliseconds and the rows of each user."""
    scheduler: Scheduler[Image] = Scheduler()
    for each in images:
        scheduler.add(each)
    duration = 0.0
    rows = dict.fromkeys((each.billing_key.user for each in images), 0)
    for _ in range(STEPS):
        batch = scheduler.next_batch(limit)
        assert batch == scheduler.next_batch(limit), "choosing a batch changed the next choice"
        duration += forward_ms(times, sum(each.rows for each in batch))
        for each in batch:
            each.k += 1
            rows[each.billing_key.user] += each.rows
        scheduler.charge(batch)
    return duration, rows


@given(forward_times(), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 32))
def test_the_bound_is_between_one_and_the_batch_limit(times: ForwardTimes, rows: list[int], limit: int) -> None:
    demands = [Demand(user, each, 1 / len(rows)) for user, each in enumerate(rows)]
    assert 1 <= StepTimeLimiter().limit_rows(demands, limit, times) <= limit


@given(forward_times(), st.integers(2, 16), st.integers(1, 4))
def test_users_of_equal_demand_are_never_bounded(times: ForwardTimes, users: int, rows: int) -> None:
    demands = [Demand(user, rows, 1 / users) for user in range(users)]
    padded_ms = forward_ms(times, users * rows)
    if padded_ms <= users * forward_ms(times, rows):  # otherwise padding makes separate turns faster
        assert StepTimeLimiter().limit_rows(demands, 32, times) == 32


@pytest.mark.slow
@given(forward_times(), st.integers(1, 8), st.integers(8, 32), st.floats(0.1, 0.9))
def test_steps_of_a_light_user_take_no_longer_than_turns_or_the_frugal_mean(
    times: ForwardTimes, light_rows: int, limit: int, share: float
) -> None:
    limiter = StepTimeLimiter()
    duration = 0.0
    demands = [Demand("light", light_rows, share), Demand("heavy", 40, 1 - share)]
    min_rows = min(limit, next((size for size in SIZES if size > light_rows), 32))
    efficient_limit = efficient_ms(times, efficient_sizes(times, light_rows + 1, limit)) if light_rows < limit else 0.0
    light_limit = max(forward_ms(times, light_rows) / share, efficient_limit)
    full_rows = forward_ms(times, limit)
    for _ in range(STEPS):
        rows = limiter.limit_rows(demands, limit, times)
        limiter.charge({"light": light_rows, "heavy": max(0, rows - light_rows)})
        duration += forward_ms(times, max(rows, light_rows))
    if forward_ms(times, min_rows) <= light_limit:
        assert duration / STEPS <= light_limit + full_rows / STEPS + 1e-6


@given(forward_times(), st.integers(1, 32), st.integers(1, 32))
def test_a_larger_efficient_batch_adds_ever_fewer_rows_a_millisecond(
    times: ForwardTimes, min_rows: int, full_rows: int
) -> None:
    sizes = efficient_sizes(times, min_rows, full_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == full_rows
    marginal_gains = [
        (more_rows - few) / max(forward_ms(times, more_rows) - forward_ms(times, few), 1e-9)
        for few, more_rows in pairwise(sizes)
    ]
    assert marginal_gains == sorted(marginal_gains, reverse=True)


@given(forward_times(), st.integers(1, 32), st.integers(1, 32))
def test_mixtures_at_the_frugal_mean_keep_most_rows_per_second(
    times: ForwardTimes, min_rows: int, full_rows: int
) -> None:
    sizes = efficient_sizes(times, min(min_rows, full_rows), full_rows)
    efficient_limit = efficient_ms(times, sizes)
    few = max(size for size in sizes if forward_ms(times, size) <= efficient_limit * (1 + 1e-9))
    larger_sizes = [size for size in sizes if size > few]
    gain = (
        0.0
        if not larger_sizes
        else (larger_sizes[0] - few) / max(forward_ms(times, larger_sizes[0]) - forward_ms(times, few), 1e-9)
    )
    rows = few + gain * (efficient_limit - forward_ms(times, few))
    assert rows / efficient_limit >= MIN_THROUGHPUT_SHARE * full_rows / forward_ms(times, full_rows) * (1 - 1e-6)


@pytest.mark.parametrize(("times", "limit", "slowdown"), [(FORWARD_MS[512], 8, 2.0), (LIGHT, 32, 2.8)])
def test_one_picture_beside_a_flood_keeps_its_pace_at_the_cost_of_few_rows(
    times: ForwardTimes, limit: int, slowdown: float
) -> None:
    flood = [image("flood", number, times) for number in range(20)]
    duration, rows = run([*flood, image("lone", 0, times)], limit, times)
    assert rows["lone"] == 2 * STEPS
    assert duration <= STEPS * slowdown * times[2] + times[limit]
    most_efficient = limit / times[limit]
    assert sum(rows.values()) / duration >= 0.84 * most_efficient


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_heavy_users_never_starve_beside_light_users(light_rows: int, images: int) -> None:
    heavy_images = [image("heavy", number, LIGHT) for number in range(20)]
    few = [image(f"light {user}", number, LIGHT) for user in range(light_rows) for number in range(images)]
    run([*heavy_images, *few], 16, LIGHT)
    assert all(each.k for each in [*heavy_images, *few])


def test_without_forward_times_batches_have_no_bound() -> None:
    flood = [image("flood", number, {}) for number in range(20)]
    _, rows = run([*flood, image("lone", 0, {})], 32, LIGHT)
    assert rows == {"flood": 30 * STEPS, "lone": 2 * STEPS}
