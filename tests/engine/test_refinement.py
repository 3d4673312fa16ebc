"""Real work corrects what a short measurement estimated: it converges, is kept, and changes nothing that is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.calibration import MOST_KEPT, Calibration, calibrate, identity, keep, read, write
from engine.engine import Engine
from engine.refinement import ENOUGH, REMEMBERED, Refinement

ESTIMATED = Calibration(
    "bfloat16", 2, 20, "dpmpp_2m", 10_000.0, 100.0, 20_000.0, {1: 10_000.0, 2: 20_000.0}, {"bfloat16": 20_000.0}
)


def test_a_few_real_steps_are_believed_and_one_is_not() -> None:
    known = Refinement(ESTIMATED)
    known.note_forward(2, 6000.0)
    assert known.renew() is None
    for _ in range(ENOUGH):
        known.note_forward(2, 6000.0)
    found = known.renew()
    assert found is not None
    assert (found.row_ms, found.rows) == (pytest.approx(3000.0), 2)
    assert found.bucket_ms == pytest.approx({1: 3000.0, 2: 6000.0}), "what was not run changes alike"
    assert known.renew() is None, "nothing new"


def test_real_decodes_replace_the_estimate() -> None:
    known = Refinement(ESTIMATED)
    for _ in range(ENOUGH):
        known.note_decode(5000.0)
    assert known.renew() == replace(ESTIMATED, decode_ms=5000.0)


@given(st.lists(st.floats(1.0, 1e6), min_size=REMEMBERED // 2, max_size=REMEMBERED // 2), st.floats(1.0, 1e6))
def test_busy_moments_count_for_nothing(busy: list[float], true: float) -> None:
    known = Refinement(ESTIMATED)
    for ms in [*busy, *[true] * (REMEMBERED - len(busy))]:
        known.note_forward(2, ms)
    known.renew()
    assert known.found.row_ms == pytest.approx(true / 2, rel=0.11)


@given(st.dictionaries(st.sampled_from((1, 2, 4, 8, 16, 32)), st.floats(0.1, 1e6)))
def test_what_is_frozen_stays(times: dict[int, float]) -> None:
    known = Refinement(ESTIMATED)
    for rows, ms in times.items():
        for _ in range(ENOUGH):
            known.note_forward(rows, ms)
    known.renew()
    found = known.found
    assert (found.dtype, found.steps, found.sampler) == (ESTIMATED.dtype, ESTIMATED.steps, ESTIMATED.sampler)
    order = sorted(found.bucket_ms)
    assert [found.bucket_ms[rows] for rows in order] == sorted(found.bucket_ms.values())
    assert 1 <= found.rows <= 32


def test_a_model_that_turns_out_quick_tries_larger_batches() -> None:
    known, rows = Refinement(ESTIMATED), 2
    for _ in range(5):
        for _ in range(REMEMBERED):
            known.note_forward(rows, 20.0 + rows)
        known.renew()
        rows = known.found.rows
    assert rows == 32


def test_the_next_start_runs_no_forward_and_has_the_refined_figures(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    first = calibrate(affine, path)
    forwards = len(affine.shapes)
    keep(path, affine, replace(first, decode_ms=123.0))
    assert calibrate(affine, path).decode_ms == 123.0
    assert len(affine.shapes) == forwards


def test_only_so_many_are_kept(affine: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write(path, {f"old {number}": ESTIMATED for number in range(MOST_KEPT)})
    keep(path, affine, ESTIMATED)
    assert len(read(path)) == MOST_KEPT
    assert identity(affine) in read(path)


def test_the_engine_says_what_it_ran_and_takes_other_caps(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    engine = Engine({"affine": affine}, rows=2, caps={"affine": 2})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    assert engine.ran is not None
    assert (engine.ran.model, engine.ran.rows, engine.ran.forwards, engine.ran.waited) == ("affine", 2, 1, True)
    assert engine.ran.shape == (4, 4, 4)
    engine.adjust("affine", 5.0, 8, {8: 40.0})
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 8
    engine.close()


def test_a_new_cap_holds_at_once_for_those_who_are_here(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    """Not only once they have run: until then a batch would have the rows of the whole worker."""
    engine = Engine({"affine": affine}, rows=32, caps={"affine": 2})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.adjust("affine", 5.0, 4, {4: 20.0})
    engine.step()
    assert engine.ran is not None
    assert (engine.ran.rows, engine.ran.forwards) == (4, 1)
    engine.close()


def test_where_memory_ran_out_a_higher_cap_changes_nothing(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    affine.memory = 2
    engine = Engine({"affine": affine}, rows=4, caps={"affine": 4})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.adjust("affine", 5.0, 16, {16: 80.0})
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 2
    engine.close()


def test_where_memory_ran_out_a_lower_cap_holds(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any]
) -> None:
    affine.memory = 4
    engine = Engine({"affine": affine}, rows=16, caps={"affine": 16})
    engine.add(job(recipe(count=4, sampler="ddim")))
    engine.step()
    engine.adjust("affine", 5.0, 2, {2: 10.0})
    affine.shapes.clear()
    for _ in range(3):
        engine.step()
    assert max(affine.shapes) == 2
    engine.close()
