"""Real work refines the calibration: it converges, is stored, and changes no frozen field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.batching.engine import Engine
from engine.calibration.calibration import (
    MAX_SAMPLES,
    MAX_STORED,
    MIN_SAMPLES,
    Calibration,
    Refinement,
    calibrate,
    calibration_key,
    read_calibrations,
    store_calibration,
    write_calibrations,
)

ESTIMATE = Calibration(
    "bfloat16", 2, 20, "dpmpp_2m", 10_000.0, 100.0, 20_000.0, {1: 10_000.0, 2: 20_000.0}, {"bfloat16": 20_000.0}
)


def test_one_step_refines_nothing_and_a_few_steps_do() -> None:
    refinement = Refinement(ESTIMATE)
    refinement.note_forward(2, 6000.0)
    assert refinement.refine() is None
    for _ in range(MIN_SAMPLES):
        refinement.note_forward(2, 6000.0)
    refined_calibration = refinement.refine()
    assert refined_calibration is not None
    assert (refined_calibration.row_ms, refined_calibration.rows) == (pytest.approx(3000.0), 2)
    assert refined_calibration.bucket_ms == pytest.approx({1: 3000.0, 2: 6000.0}), (
        "batch sizes that did not run scale alike"
    )
    assert refinement.refine() is None, "no new measurement"


def test_real_decodes_replace_the_estimate() -> None:
    refinement = Refinement(ESTIMATE)
    for _ in range(MIN_SAMPLES):
        refinement.note_decode(5000.0)
    assert refinement.refine() == replace(ESTIMATE, decode_ms=5000.0)


@given(st.lists(st.floats(1.0, 1e6), min_size=MAX_SAMPLES // 2, max_size=MAX_SAMPLES // 2), st.floats(1.0, 1e6))
def test_slow_outliers_do_not_change_the_calibration(outliers: list[float], true_ms: float) -> None:
    refinement = Refinement(ESTIMATE)
    for ms in [*outliers, *[true_ms] * (MAX_SAMPLES - len(outliers))]:
        refinement.note_forward(2, ms)
    refinement.refine()
    assert refinement.calibration.row_ms == pytest.approx(true_ms / 2, rel=0.11)


@given(st.dictionaries(st.sampled_from((1, 2, 4, 8, 16, 32)), st.floats(0.1, 1e6)))
def test_refinement_keeps_the_frozen_fields(times: dict[int, float]) -> None:
    refinement = Refinement(ESTIMATE)
    for rows, ms in times.items():
        for _ in range(MIN_SAMPLES):
            refinement.note_forward(rows, ms)
    refinement.refine()
    refined_calibration = refinement.calibration
    assert (refined_calibration.dtype, refined_calibration.steps, refined_calibration.sampler) == (
        ESTIMATE.dtype,
        ESTIMATE.steps,
        ESTIMATE.sampler,
    )
    order = sorted(refined_calibration.bucket_ms)
    assert [refined_calibration.bucket_ms[rows] for rows in order] == sorted(refined_calibration.bucket_ms.values())
    assert 1 <= refined_calibration.rows <= 32


def test_a_faster_model_gets_larger_batches() -> None:
    refinement = Refinement(ESTIMATE)
    rows = 2
    for _ in range(5):
        for _ in range(MAX_SAMPLES):
            refinement.note_forward(rows, 20.0 + rows)
        refinement.refine()
        rows = refinement.calibration.rows
    assert rows == 32


def test_the_next_start_uses_the_refined_calibration_without_a_forward(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    first = calibrate(affine, path)
    forwards = len(affine.shapes)
    store_calibration(path, affine, replace(first, decode_ms=123.0))
    assert calibrate(affine, path).decode_ms == 123.0
    assert len(affine.shapes) == forwards


def test_the_number_of_stored_calibrations_is_bounded(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_calibrations(path, {f"old {number}": ESTIMATE for number in range(MAX_STORED)})
    store_calibration(path, affine, ESTIMATE)
    assert len(read_calibrations(path)) == MAX_STORED
    assert calibration_key(affine) in read_calibrations(path)


def test_the_engine_reports_what_it_ran_and_accepts_new_batch_limits(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    engine = Engine({"affine": affine}, rows=2, batch_limits={"affine": 2})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    assert engine.last_batch is not None
    assert (
        engine.last_batch.model,
        engine.last_batch.rows,
        engine.last_batch.forward_count,
        engine.last_batch.is_synchronised,
    ) == ("affine", 2, 1, True)
    assert engine.last_batch.shape == (4, 4, 4)
    engine.set_calibration("affine", 5.0, 8, {8: 40.0})
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 8
    engine.close()


def test_a_new_batch_limit_applies_to_running_jobs_at_once(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    """Not only after their next step: until then a batch would have the rows of the whole worker."""
    engine = Engine({"affine": affine}, rows=32, batch_limits={"affine": 2})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.set_calibration("affine", 5.0, 4, {4: 20.0})
    engine.step()
    assert engine.last_batch is not None
    assert (engine.last_batch.rows, engine.last_batch.forward_count) == (4, 1)
    engine.close()


def test_after_out_of_memory_a_higher_batch_limit_changes_nothing(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    affine.memory = 2
    engine = Engine({"affine": affine}, rows=4, batch_limits={"affine": 4})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.set_calibration("affine", 5.0, 16, {16: 80.0})
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 2
    engine.close()


def test_after_out_of_memory_a_lower_batch_limit_applies(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    affine.memory = 4
    engine = Engine({"affine": affine}, rows=16, batch_limits={"affine": 16})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.set_calibration("affine", 5.0, 2, {2: 10.0})
    affine.shapes.clear()
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 2
    engine.close()
