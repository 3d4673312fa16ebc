"""A benchmark row passes by its goal and its sample count. A row without samples never passes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.figure_row import FigureRow, format_json, format_table

GOALS = st.sampled_from(["≥ 0.5", "≤ 2", "= 0", "= 1", "0.9 to 1.1", None])
FIGURES = st.none() | st.floats() | st.integers(-3, 3)


@given(FIGURES, GOALS, st.integers(0, 5), st.integers(1, 5))
def test_a_row_passes_only_if_all_was_measured(
    figure: float | None, goal: str | None, samples: int, planned_count: int
) -> None:
    row = FigureRow("a row", figure, goal, "", "", samples, planned_count)
    if samples < planned_count or figure is None or not math.isfinite(figure):
        assert not row.meets_goal
        assert row.remark
    assert (row.figure is None) == (samples == 0 or figure is None or not math.isfinite(figure))
    assert row.meets_goal or goal is not None or row.remark
    assert replace(row) == row
    [json_row] = json.loads(format_json([row]), parse_constant=pytest.fail)
    assert json_row["pass"] == row.meets_goal


@pytest.mark.parametrize(("samples", "note"), [(0, "nothing was measured: 0 of 1,000"), (900, "only 900 of 1,000")])
def test_an_incomplete_row_says_how_many_samples_it_has(samples: int, note: str) -> None:
    row = FigureRow("finals shown twice", 0, "= 0", "", "as notices", samples, 1000)
    assert not row.meets_goal
    assert row.to_dict()["note"] == row.remark
    assert row.remark.startswith(note)
    assert row.remark.endswith("; as notices")
    assert row.remark in format_table([row])


def test_a_complete_row_says_how_many_samples_it_has() -> None:
    row = FigureRow("finals shown twice", 0, "= 0", "", samples=1000, planned=1000)
    assert row.meets_goal
    assert row.to_dict() == {
        "name": "finals shown twice",
        "figure": 0,
        "goal": "= 0",
        "unit": "",
        "pass": True,
        "samples": 1000,
        "of": 1000,
    }


def test_a_row_of_one_measurement_shows_no_sample_count() -> None:
    assert FigureRow("resident", 120.0, "≤ 200", "MB").to_dict() == {
        "name": "resident",
        "figure": 120.0,
        "goal": "≤ 200",
        "unit": "MB",
        "pass": True,
    }


@pytest.mark.parametrize(
    ("figure", "expected"), [(0.89, False), (0.9, True), (1.1, True), (1.11, False), (None, False)]
)
def test_a_goal_may_be_a_range(figure: float | None, expected: bool) -> None:
    assert FigureRow("a row", figure, "0.9 to 1.1", "×").meets_goal == expected
