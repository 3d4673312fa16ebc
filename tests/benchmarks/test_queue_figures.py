"""The pure parts of `darkroom bench queue` and `scale`: percentiles, growth, fairness, rows and goals."""

from __future__ import annotations

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.queue import command, failover, preview_delivery, worker_scaling
from benchmarks.queue.figures import GOALS, make_row, name_database, pick_spread
from benchmarks.queue.preview_delivery import StreamViewer
from benchmarks.queue.system.timestamp_worker import add_timestamp, make_jpeg, read_timestamp
from benchmarks.report.figure_row import format_json
from benchmarks.report.measures import growth_exponent, jain_index, percentile, rate_per_second

TIMES = st.lists(st.floats(0, 1e6), min_size=1)


@given(TIMES, st.floats(0, 1))
def test_a_percentile_is_a_value_with_its_share_of_values_below(values: list[float], fraction: float) -> None:
    result = percentile(values, fraction)
    assert result in values
    assert sum(value <= result for value in values) >= fraction * len(values)
    assert sum(value < result for value in values) <= fraction * len(values)


def test_percentiles_of_few_values() -> None:
    assert [percentile([3.0, 1.0, 2.0], fraction) for fraction in (0, 0.5, 0.99, 1)] == [1, 2, 3, 3]
    assert percentile(range(1, 101), 0.99) == 99
    assert math.isnan(percentile([], 0.5))


@given(st.floats(-1, 2), st.floats(0.001, 1000))
def test_growth_finds_the_exponent(exponent: float, factor: float) -> None:
    sizes = (1_000, 10_000, 100_000)
    assert growth_exponent(sizes, [factor * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-6)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_jains_index_is_one_for_equal_shares_and_least_for_a_single_user(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain_index(shares) <= 1 + 1e-9
    assert jain_index([shares[0]] * 10) == pytest.approx(1)
    assert jain_index([shares[0], *[0.0] * 9]) == pytest.approx(0.1)


def test_a_pace_does_not_count_a_batch_twice() -> None:
    assert rate_per_second([number * 0.5 for number in range(20)]) == pytest.approx(2)
    assert rate_per_second([batch * 2.0 for batch in range(10) for _ in range(4)]) == pytest.approx(2, rel=0.03)
    assert rate_per_second([1.0]) == 0


def test_the_spread_of_the_next_picks_is_the_most_minus_the_fewest() -> None:
    assert pick_spread(["a", "b", "a", "b", "c"], 3) == 1
    assert pick_spread(["a", "a", "a"], 2) == 3
    assert pick_spread([], 2) == 0


def test_a_row_passes_by_the_goal_of_its_name() -> None:
    name = "enqueue → first step, idle, p99"
    rows = [make_row(name, figure, "", 2, 2) for figure in (50.0, 50.1, None, math.nan)]
    assert [each.meets_goal for each in rows] == [True, False, False, False]
    assert rows[-1].figure is None
    rate_row = make_row("accepted jobs a second", 300.0, "", 9, 9)
    both_rows = [name_database([rate_row], database)[0] for database in ("SQLite", "PostgreSQL")]
    assert [each.meets_goal for each in both_rows] == [True, False]
    [json_row] = json.loads(format_json(name_database([make_row(name, 12.5, "so", 7, 7)], "SQLite")))
    assert json_row == {
        "name": f"{name} (SQLite)",
        "figure": 12.5,
        "goal": "≤ 50",
        "unit": "ms",
        "pass": True,
        "note": "so",
        "samples": 7,
        "of": 7,
    }


def test_every_name_has_a_goal() -> None:
    assert {name for names in command.ROW_NAMES.values() for name in names} == set(GOALS)


def test_a_handover_is_judged_by_its_worst_time() -> None:
    kill_failovers = [failover.Failover(wait, 0.5) for wait in (9.0, 10.0, 12.5)]
    stop_failovers = [failover.Failover(wait, 0.1) for wait in (0.2, 0.3, 0.4, 0.5, 1.2)]
    rows = {each.name: each for each in failover.build_rows(kill_failovers, stop_failovers, (3, 5))}
    kill_row = rows[failover.KILL_NAME]
    stop_row = rows[failover.STOP_NAME]
    assert [(each.figure, each.meets_goal) for each in (kill_row, stop_row)] == [(12.5, False), (1.2, False)]
    assert "worst of 3, median 10.00 s" in kill_row.note
    assert "worst of 5, median 0.40 s" in stop_row.note
    assert rows[failover.REPEAT_NAME].meets_goal


def test_efficiency_compares_with_one_worker() -> None:
    value = worker_scaling.efficiency_row({1: (0.5, 9), 8: (3.8, 9)}, 8)
    assert (value.figure, value.goal, value.meets_goal) == (pytest.approx(0.95), "≥ 0.9", True)
    assert not worker_scaling.efficiency_row({1: (0.5, 9), 8: (3.0, 9)}, 8).meets_goal
    assert worker_scaling.efficiency_row({1: (0.5, 9), 2: (0.6, 9)}, 2).goal is None


def test_no_row_passes_without_a_measurement() -> None:
    without_frames = preview_delivery.build_rows([], [[], []], 35)
    without_moves = failover.build_rows([], [], (3, 5))
    without_workers = worker_scaling.efficiency_row({1: (0.0, 0), 8: (0.0, 0)}, 8)
    for each in (*without_frames, *without_moves, without_workers):
        assert (each.figure, each.meets_goal) == (None, False)
        assert each.remark.startswith("nothing was measured: 0 of ")


def test_a_row_with_too_few_samples_does_not_pass() -> None:
    rows = preview_delivery.build_rows([1.0] * 35, [[1.0] * 34, *[[1.0] * 35] * 99], 35)
    assert [each.meets_goal for each in rows] == [True, False, False]
    assert "only 3,499 of 3,500 were measured" in rows[-1].remark
    assert not any(each.meets_goal for each in failover.build_rows([failover.Failover(1.0, 0.1)], [], (3, 5)))


def test_a_viewer_reads_stamps_from_chunks_of_a_stream() -> None:
    picture = add_timestamp(make_jpeg(2_000))
    event = {"id": "X", "frames": {"1": base64.b64encode(picture).decode()}}
    stream = b"event: jobs\r\ndata: {}\r\n\r\nevent: frame\r\ndata: " + json.dumps(event).encode() + b"\r\n\r\n: ping"
    viewer = StreamViewer()
    now = read_timestamp(picture) + 0.012
    for start in range(0, len(stream), 1000):
        viewer.add_chunk(stream[start : start + 1000], now)
    assert viewer.frame_delays() == [pytest.approx(12)]
    assert picture.startswith(b"\xff\xd8\xff")
    assert 2_000 <= len(picture) < 9_000
