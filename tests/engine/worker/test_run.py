"""A worker's run: its pace, time left and cost; it ends only once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bus.claims import Claim
from engine.contract import (
    Amendment,
    BillingKey,
    Concept,
    DropImages,
    ImageToImage,
    InitImage,
    Job,
    Recipe,
    SetConcepts,
    SetGuidance,
    Snapshot,
    Task,
    UpscaleTask,
    count_image_rows,
    recipe_at_step,
)
from engine.worker.run import JobRun

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def build_run(task: Task | None = None, **recipe: Any) -> JobRun:
    defaults: dict[str, Any] = {
        "concepts": (Concept("a cat"),),
        "model": "embedded",
        "sampler": "ddim",
        "steps": 100,
        "seed": 1,
        "guidance": 4.0,
        "width": 64,
        "height": 64,
        "dtype": "float32",
    }
    task = task or Recipe(**{**defaults, **recipe})
    job = Job(id=JOB, task=task, billing_key=BillingKey("standard", "guild", "ann"), cost=8.0, deadline=2e9)
    return JobRun(job, Claim(JOB, "one", 5, 5), start_time=0.0)


def test_the_time_left_follows_the_pace_of_the_steps() -> None:
    run = build_run(count=2)
    for k in range(1, 51):
        run.record_step([(0, k), (1, k)], k * 0.2)
    assert run.seconds_left == pytest.approx(2 * 50 * 0.1)
    for k in range(51, 101):
        run.record_step([(0, k), (1, k)], 10 + (k - 50) * 0.4)
    assert run.seconds_left == 0
    assert run.seconds_per_evaluation == pytest.approx(0.2, rel=0.1)


def test_the_first_step_already_has_a_time_left() -> None:
    run = build_run(count=1)
    run.last_step_time = 10.0
    run.record_step([(0, 1)], 10.5)
    assert run.seconds_left == pytest.approx(99 * 0.5)


def test_a_pace_is_known_at_once_and_takes_no_rows() -> None:
    run = build_run(count=2)
    for k in range(1, 51):
        run.record_step([(0, k), (1, k)], k * 0.2)
    run.set_pace(3.0)
    assert run.seconds_left == 50 * 3.0
    assert run.rows == 0
    run.set_pace(0.0)
    run.record_step([(0, 51), (1, 51)], 10.2)
    assert run.seconds_left == pytest.approx(2 * 49 * 0.1), "the seconds between paced steps count no more"
    assert run.rows > 0


def test_steps_of_a_dropped_image_count_no_more() -> None:
    run = build_run(count=2)
    recipe = run.job.task
    assert isinstance(recipe, Recipe)
    run.follow_amendments(msgspec.structs.replace(recipe, amendments=(Amendment(1, 5, DropImages((1,))),)))
    run.record_step([(0, 6), (1, 5)], 1.0)
    assert run.steps_done == {0: 6}


def snapshot(image: int, k: int, *followed_changes: tuple[int, int]) -> Snapshot:
    return Snapshot(
        job=JOB, image=image, epoch=4, next_step=k, shape=(1,), x=b"", history=b"", followed_changes=followed_changes
    )


def test_a_run_resumes_from_its_least_advanced_image() -> None:
    run = build_run(count=3)
    assert run.restore_progress([snapshot(0, 40), snapshot(1, 30)]) == 0
    assert run.steps_done == {0: 40, 1: 30, 2: 0}
    assert run.restore_progress([snapshot(2, 35), snapshot(3, 1)]) == 30
    assert not run.has_unsaved_steps
    run.record_step([(2, 36)], 1.0)
    assert run.has_unsaved_steps


def test_snapshots_of_the_job_with_other_changes_count_for_nothing() -> None:
    """Change 4 holds from step 30 on, so steps before that are the same with and without it."""
    changes = (Amendment(4, 30, SetGuidance(2.0)), Amendment(5, 50, SetGuidance(3.0)))
    run = build_run(count=4, amendments=changes)
    run.restore_progress([snapshot(0, 30), snapshot(1, 31), snapshot(2, 31, (4, 30)), snapshot(3, 60, (5, 50))])
    assert run.steps_done == {0: 30, 1: 0, 2: 31, 3: 0}


@given(st.integers(0, 2000))
def test_the_charge_never_exceeds_the_cost(steps: int) -> None:
    assert build_run().compute_cost(steps) == pytest.approx(8.0 * min(steps, 100) / 100)


def test_a_partial_run_counts_only_the_steps_that_run() -> None:
    run = build_run(count=2, start=ImageToImage((InitImage("a" * 64),), 0.6), stop_at=0.8)
    assert (run.first_step, run.end_step, run.steps_done, run.has_unsaved_steps) == (40, 80, {0: 40, 1: 40}, False)
    assert run.restore_progress([snapshot(0, 60)]) == 40
    assert not run.has_unsaved_steps
    run.last_step_time = 10.0
    run.record_step([(0, 61), (1, 41)], 11.0)
    assert run.has_unsaved_steps
    assert run.seconds_left == pytest.approx((19 + 39) * 0.5)
    assert [run.compute_cost(steps) for steps in (0, 40, 60, 80, 100)] == [0.0, 0.0, 4.0, 8.0, 8.0]


def test_an_upscale_takes_no_rows_and_has_one_output() -> None:
    run = build_run(UpscaleTask(source="a" * 64))
    assert (run.rows, run.end_step, run.unpublished_images, run.compute_cost(0), run.seconds_left) == (
        0,
        0,
        {0},
        0.0,
        0.0,
    )


def test_a_run_has_the_rows_of_its_recipe() -> None:
    assert build_run().rows == 8


def test_a_run_ends_once() -> None:
    run = build_run()
    assert [run.try_end() for _ in range(3)] == [True, False, False]


def test_the_rows_of_an_amended_recipe_are_those_of_its_state_at_every_step() -> None:
    """Also while a fade has old and new words, and once an image was dropped."""
    fade = SetConcepts((Concept("a dog"), Concept("a hat"), Concept("snow")), False, 5)
    run = build_run(count=3)
    amendments = (Amendment(1, 10, fade), Amendment(2, 20, SetGuidance(1.0)), Amendment(3, 30, DropImages((1,))))
    assert isinstance(run.job.task, Recipe)
    run.follow_amendments(msgspec.structs.replace(run.job.task, amendments=amendments))
    recipe = run.job.task
    seen = set[int]()
    for step in range(100):
        run.steps_done = dict.fromkeys(run.steps_done, step)
        assert run.rows == len(run.steps_done) * count_image_rows(recipe_at_step(recipe, step))
        seen.add(run.rows)
    assert len(seen) > 2
