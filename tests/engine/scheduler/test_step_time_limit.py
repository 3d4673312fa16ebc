"""Members with few rows keep their pace beside a member with many, at the cost of few rows a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.simulated_device import FORWARD_MS
from engine.contract import BillingKey
from engine.scheduler import Scheduler
from engine.scheduler.step_time_limit import (
    MIN_THROUGHPUT_SHARE,
    Demand,
    ForwardTimes,
    StepTimeLimiter,
    efficient_ms,
    efficient_sizes,
    forward_ms,
)

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
    share: BillingKey
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
    took, rows = 0.0, dict.fromkeys((each.share.user for each in images), 0)
    for _ in range(STEPS):
        batch = scheduler.next_batch(limit)
        assert batch == scheduler.next_batch(limit), "choosing a batch changed the next choice"
        took += forward_ms(times, sum(each.rows for each in batch))
        for each in batch:
            each.k += 1
            rows[each.share.user] += each.rows
        scheduler.charge(batch)
    return took, rows


@given(forward_times(), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 32))
def test_the_bound_is_between_one_and_the_batch_limit(times: ForwardTimes, rows: list[int], limit: int) -> None:
    demands = [Demand(user, each, 1 / len(rows)) for user, each in enumerate(rows)]
    assert 1 <= StepTimeLimiter().limit_rows(demands, limit, times) <= limit


@given(forward_times(), st.integers(2, 16), st.integers(1, 4))
def test_users_of_equal_demand_are_never_bounded(times: ForwardTimes, users: int, rows: int) -> None:
    demands = [Demand(user, rows, 1 / users) for user in range(users)]
    padded = forward_ms(times, users * rows)
    if padded <= users * forward_ms(times, rows):  # otherwise padding makes separate turns faster
        assert StepTimeLimiter().limit_rows(demands, 32, times) == 32


@pytest.mark.slow
@given(forward_times(), st.integers(1, 8), st.integers(8, 32), st.floats(0.1, 0.9))
def test_steps_of_a_light_user_take_no_longer_than_turns_or_the_frugal_mean(
    times: ForwardTimes, light: int, limit: int, share: float
) -> None:
    patience, took = StepTimeLimiter(), 0.0
    demands = [Demand("light", light, share), Demand("heavy", 40, 1 - share)]
    least = min(limit, next((size for size in SIZES if size > light), 32))
    frugal = efficient_ms(times, efficient_sizes(times, light + 1, limit)) if light < limit else 0.0
    allowance, full = max(forward_ms(times, light) / share, frugal), forward_ms(times, limit)
    for _ in range(STEPS):
        rows = patience.limit_rows(demands, limit, times)
        patience.charge({"light": light, "heavy": max(0, rows - light)})
        took += forward_ms(times, max(rows, light))
    if forward_ms(times, least) <= allowance:
        assert took / STEPS <= allowance + full / STEPS + 1e-6


@given(forward_times(), st.integers(1, 32), st.integers(1, 32))
def test_a_larger_efficient_batch_adds_ever_fewer_rows_a_millisecond(
    times: ForwardTimes, least: int, full: int
) -> None:
    sizes = efficient_sizes(times, least, full)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == full
    gains = [
        (many - few) / max(forward_ms(times, many) - forward_ms(times, few), 1e-9) for few, many in pairwise(sizes)
    ]
    assert gains == sorted(gains, reverse=True)


@given(forward_times(), st.integers(1, 32), st.integers(1, 32))
def test_mixtures_at_the_frugal_mean_keep_most_rows_per_second(times: ForwardTimes, least: int, full: int) -> None:
    sizes = efficient_sizes(times, min(least, full), full)
    frugal = efficient_ms(times, sizes)
    few = max(size for size in sizes if forward_ms(times, size) <= frugal * (1 + 1e-9))
    rest = [size for size in sizes if size > few]
    gain = 0.0 if not rest else (rest[0] - few) / max(forward_ms(times, rest[0]) - forward_ms(times, few), 1e-9)
    rows = few + gain * (frugal - forward_ms(times, few))
    assert rows / frugal >= MIN_THROUGHPUT_SHARE * full / forward_ms(times, full) * (1 - 1e-6)


@pytest.mark.parametrize(("times", "limit", "slower"), [(FORWARD_MS[512], 8, 2.0), (LIGHT, 32, 2.8)])
def test_one_picture_beside_a_flood_keeps_its_pace_at_the_cost_of_few_rows(
    times: ForwardTimes, limit: int, slower: float
) -> None:
    flood = [image("flood", number, times) for number in range(20)]
    took, rows = run([*flood, image("lone", 0, times)], limit, times)
    assert rows["lone"] == 2 * STEPS
    assert took <= STEPS * slower * times[2] + times[limit]
    most = limit / times[limit]
    assert sum(rows.values()) / took >= 0.84 * most


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_heavy_users_never_starve_beside_light_users(light: int, images: int) -> None:
    heavy = [image("heavy", number, LIGHT) for number in range(20)]
    few = [image(f"light {user}", number, LIGHT) for user in range(light) for number in range(images)]
    run([*heavy, *few], 16, LIGHT)
    assert all(each.k for each in [*heavy, *few])


def test_without_forward_times_batches_have_no_bound() -> None:
    flood = [image("flood", number, {}) for number in range(20)]
    _, rows = run([*flood, image("lone", 0, {})], 32, LIGHT)
    assert rows == {"flood": 30 * STEPS, "lone": 2 * STEPS}
