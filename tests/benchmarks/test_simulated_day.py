"""The simulated day: equal for equal seeds, complete in both orders, and at its goals."""

from __future__ import annotations

import math
import sys

import pytest

from benchmarks.simulated_day import (
    BATCH_LIMIT,
    DAY_SECONDS,
    Arrival,
    BatchedSimulation,
    SequentialSimulation,
    compare_orders,
    compute_forward_ms,
    compute_isolated_seconds,
    fill_percent,
    generate_day,
    jain_index,
    measure_fairness,
    percentile,
    simulate_day_rows,
)

ARRIVALS = generate_day(3)[:400]


def test_a_day_is_in_order_and_the_same_for_its_seed() -> None:
    arrivals = generate_day(3)
    assert arrivals == generate_day(3)
    assert arrivals != generate_day(4)
    assert [each.arrival_time for each in arrivals] == sorted(each.arrival_time for each in arrivals)
    assert len({each.job_id for each in arrivals}) == len(arrivals) > 1000
    assert 0 < arrivals[0].arrival_time < DAY_SECONDS
    assert {each.size for each in arrivals} == {512, 768, 1024}
    assert any(math.isfinite(each.cancel_after) for each in arrivals)
    evening_count = sum(18 <= each.arrival_time / 3600 < 24 for each in arrivals)
    assert evening_count > 2 * sum(6 <= each.arrival_time / 3600 < 12 for each in arrivals)


@pytest.mark.slow
@pytest.mark.parametrize("order", [BatchedSimulation, SequentialSimulation])
def test_both_orders_end_every_job_once(order: type[BatchedSimulation] | type[SequentialSimulation]) -> None:
    result = order(ARRIVALS).run()
    patient_jobs = {each.job_id for each in ARRIVALS if math.isinf(each.cancel_after)}
    assert patient_jobs <= result.finish_seconds.keys() <= {each.job_id for each in ARRIVALS}
    assert result.finish_seconds.keys() <= result.preview_seconds.keys()
    assert all(result.preview_seconds[job] <= result.finish_seconds[job] for job in result.finish_seconds)
    assert all(
        result.finish_seconds[each.job_id] >= compute_isolated_seconds(each) * (1 - 1e-9)
        for each in ARRIVALS
        if each.job_id in result.finish_seconds
    )
    assert all(
        result.finish_seconds[each.job_id] <= each.cancel_after
        for each in ARRIVALS
        if each.job_id in result.finish_seconds
    )
    assert 0 < fill_percent(result) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("order", [BatchedSimulation, SequentialSimulation])
def test_the_same_arrivals_give_the_same_figures(order: type[BatchedSimulation] | type[SequentialSimulation]) -> None:
    assert order(ARRIVALS).run() == order(ARRIVALS).run()


@pytest.mark.parametrize("order", [BatchedSimulation, SequentialSimulation])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_single_job_takes_its_time_alone(
    order: type[BatchedSimulation] | type[SequentialSimulation], images: int
) -> None:
    job = Arrival("j", 5.0, "u", "g", 768, 20, images, guidance_start=4, guidance_end=16)
    result = order([job]).run()
    assert result.finish_seconds["j"] == pytest.approx(compute_isolated_seconds(job))
    assert result.preview_seconds["j"] == pytest.approx(compute_forward_ms(768, images) / 1000)


@pytest.mark.parametrize("order", [BatchedSimulation, SequentialSimulation])
def test_a_user_who_gives_up_frees_the_device(order: type[BatchedSimulation] | type[SequentialSimulation]) -> None:
    impatient_arrival = Arrival("gone", 0.0, "u", "g", cancel_after=1.0)
    other = Arrival("other", 0.5, "v", "g")
    result = order([impatient_arrival, other]).run()
    assert "gone" not in result.finish_seconds
    assert result.finish_seconds["other"] <= compute_isolated_seconds(other) + 2.0


def test_rows_are_padded_to_the_next_bucket() -> None:
    assert compute_forward_ms(512, 3) == compute_forward_ms(512, 4) > compute_forward_ms(512, 2)
    assert compute_forward_ms(512, BATCH_LIMIT + 1) == compute_forward_ms(512, BATCH_LIMIT) + compute_forward_ms(512, 1)


def test_the_statistics_match_textbook_values() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert percentile(range(1, 101), 0.95) == 95
    assert percentile([4.0], 0.5) == percentile([4.0], 0.95) == 4.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


@pytest.mark.slow
def test_fairness_is_at_its_goals() -> None:
    rows = measure_fairness()
    assert len(rows) == len([row for row in rows if row.goal]) == 4
    assert [row.name for row in rows if not row.meets_goal] == []


@pytest.mark.slow
def test_the_first_preview_comes_sooner_in_the_evening() -> None:
    rows = {
        row.name: row
        for row in compare_orders([each for each in generate_day(5) if 19 <= each.arrival_time / 3600 < 22])
    }
    assert all(row.meets_goal for row in rows.values())
    our_figure, other_figure = (rows[f"first preview p95, {name}"].figure for name in ("ours", "one after another"))
    assert our_figure is not None
    assert other_figure is not None
    assert 5 * our_figure < other_figure


def test_a_missing_simpy_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    (row,) = simulate_day_rows()
    assert not row.meets_goal
    assert row.note == "simpy is missing: pip install 'darkroom-bot[bench]'"
