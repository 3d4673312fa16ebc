"""Steering: a job that is amended while it runs, drawn again from its recipe, and continued by another worker."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.batching.engine import Engine, LatentsDone
from engine.batching.job_images import encode_change, has_new_texts
from engine.contract import (
    AmendmentRequest,
    Change,
    Concept,
    DropImages,
    Job,
    JobRejected,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    count_row_steps,
    list_final_images,
)

Make = Callable[..., Any]
STEPS = 16

WORDS = st.sampled_from(["fox", "terrier", "sea", "red", "night"])
CONCEPTS = st.lists(
    st.builds(Concept, WORDS, st.sampled_from([0.25, 0.5, 1.0, 2.0])),
    min_size=1,
    max_size=3,
    unique_by=lambda c: c.text,
).map(tuple)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(SetConcepts, CONCEPTS, st.booleans(), st.integers(0, 6)),
    st.builds(SetNegative, WORDS),
    st.builds(SetGuidance, st.sampled_from([1.0, 2.0, 6.0]), st.just(0.0), st.sampled_from([0.6, 1.0])),
    st.builds(DropImages, st.sets(st.integers(0, 3), min_size=1, max_size=2).map(tuple)),
    st.builds(
        SplitImage, st.integers(0, 3), st.sets(st.integers(0, 3), min_size=1, max_size=3).map(tuple), st.integers(0, 99)
    ),
)
SCRIPTS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), CHANGES), max_size=8)


def with_task(job: Job, task: Recipe) -> Job:
    return msgspec.structs.replace(job, task=task)


def run_script(engine: Engine, job: Job, script: Any, reopen: Callable[[], Engine]) -> tuple[Recipe, dict[int, Any]]:
    """Amend a job between steps, sometimes on a new worker. Return its recipe at the end and its latents."""
    recipe = job.task
    latents = dict[int, Any]()
    assert isinstance(recipe, Recipe)
    engine.add(job)
    for number, (steps, is_lost, change) in enumerate([*script, (STEPS, False, None)], 1):
        for _ in range(steps):
            for event in engine.step():
                if isinstance(event, LatentsDone):
                    latents[event.image] = event.latents
        if is_lost and not latents:
            snapshots = engine.take_snapshots(job.id, epoch=number)
            engine = reopen()
            engine.add(with_task(job, recipe), snapshots)
        if change is not None:
            try:
                recipe = engine.amend(job.id, AmendmentRequest(number, change))
            except (JobRejected, KeyError):  # it is refused, or the job is over
                continue
    return recipe, latents


@example(
    script=[(0, False, SplitImage(0, (1,), 0)), (0, False, DropImages((0,)))], sampler="ddpm", count=1, evaluations=0
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=SCRIPTS,
    sampler=st.sampled_from(["ddpm", "dpmpp_2m", "euler"]),
    count=st.integers(1, 4),
    evaluations=st.sampled_from([0, 5, 9]),
)
def test_a_steered_run_is_its_recipe_drawn_from_the_start(
    affine: Any, recipe: Make, job: Make, script: Any, sampler: str, count: int, evaluations: int
) -> None:
    fields = {"sampler": sampler, "steps": STEPS, "guidance": 3.0, "count": count, "bucket": 4}
    one = job(recipe("fox", evaluations=evaluations, **fields))
    open_engine = lambda: Engine({"affine": affine})  # noqa: E731
    amended, latents = run_script(open_engine(), one, script, open_engine)
    replayed, expected = run_script(open_engine(), with_task(one, amended), [], open_engine)
    assert replayed == amended
    assert tuple(sorted(latents)) == tuple(sorted(expected)) == list_final_images(amended)
    assert all(torch.equal(latents[image], expected[image]) for image in expected)


@pytest.mark.parametrize(
    "changes",
    [
        (SplitImage(0, (1,), 7), SplitImage(1, (2,), 8)),
        (SplitImage(0, (1,), 7), DropImages((1,)), SplitImage(0, (1,), 8)),
        (SplitImage(0, (1, 2), 7), SplitImage(2, (3,), 8), DropImages((0, 2)), SplitImage(1, (0, 2), 9)),
    ],
    ids=["a split of a new image", "a place that is free again", "both"],
)
@pytest.mark.parametrize("step", [4, STEPS - 2])
def test_images_that_have_not_begun_can_be_split_and_dropped(
    affine: Any, recipe: Make, job: Make, changes: tuple[Change, ...], step: int
) -> None:
    one = job(recipe("fox", sampler="dpmpp_2m", steps=STEPS, guidance=3.0, bucket=4))
    open_engine = lambda: Engine({"affine": affine})  # noqa: E731
    script = [(step if index == 0 else 0, False, change) for index, change in enumerate(changes)]
    amended, latents = run_script(open_engine(), one, script, open_engine)
    assert len(amended.amendments) == len(changes)
    _, expected = run_script(open_engine(), with_task(one, amended), [], open_engine)
    assert tuple(sorted(latents)) == tuple(sorted(expected)) == list_final_images(amended)
    assert all(torch.equal(latents[image], expected[image]) for image in expected)


def start(affine: Any, one: Job, steps: int) -> Engine:
    engine = Engine({"affine": affine})
    engine.add(one)
    for _ in range(steps):
        engine.step()
    return engine


def test_a_change_holds_from_the_next_step_on(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe("fox", steps=STEPS, guidance=3.0))
    engine = start(affine, one, 5)
    amended = engine.amend(one.id, AmendmentRequest(1, SetConcepts((Concept("terrier"), Concept("sea", 0.5)))))
    assert amended.amendments[0].step == 5
    affine.shapes.clear()
    engine.step()
    assert affine.shapes == [3], "the empty text and two concepts"


def test_dropped_images_free_their_rows_at_once(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    one = job(recipe("fox", steps=STEPS, guidance=3.0, count=4))
    engine = start(affine, one, 5)
    assert engine.rows - engine.free_rows == 8
    amended = engine.amend(one.id, AmendmentRequest(1, DropImages((0, 2, 3))))
    assert engine.rows - engine.free_rows == 2
    assert [image for _, image in finish(engine)] == [1]
    assert count_row_steps(amended) == 5 * 8 + 11 * 2


def test_a_split_image_goes_on_beside_new_ones(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    one = job(recipe("fox", steps=STEPS, guidance=3.0))
    engine = start(affine, one, 5)
    engine.amend(one.id, AmendmentRequest(1, SplitImage(0, (1, 2), 77)))
    assert engine.rows - engine.free_rows == 2, "the new images begin after the next step"
    latents = {image: each for (_, image), each in finish(engine).items()}
    assert sorted(latents) == [0, 1, 2]
    assert torch.equal(latents[0], finish(start(affine, one, 0))[one.id, 0]), "the image itself is not changed"
    assert not torch.allclose(latents[1], latents[2])


def test_what_cannot_be_is_refused_with_a_sentence(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe("fox", steps=STEPS, guidance=3.0, count=2))
    engine = start(affine, one, 3)
    refused = {
        DropImages((0, 1)): "has to stay",
        DropImages((3,)): "not developing",
        SplitImage(0, (1,), 5): "free places",
        SetGuidance(3.0, 0.9, 0.1): "before it starts",
        SetConcepts((Concept("a", -1.0),), mixed=True): "above 0",
    }
    for change, sentence in refused.items():
        with pytest.raises(JobRejected, match=sentence):
            engine.amend(one.id, AmendmentRequest(1, change))
    for _ in range(STEPS - 4):
        engine.step()
    with pytest.raises(JobRejected, match="as good as finished"):
        engine.amend(one.id, AmendmentRequest(1, SetNegative("fog")))
    with pytest.raises(KeyError):
        engine.amend("another", AmendmentRequest(1, SetNegative("fog")))


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("kept_images", [{0, 1}, {0}])
def test_a_split_job_continues_or_starts_over_where_a_snapshot_is_lost(
    affine: Any, recipe: Make, job: Make, finish: Make, sampler: str, kept_images: set[int]
) -> None:
    one = job(recipe("fox", sampler=sampler, steps=STEPS, guidance=3.0))
    engine = start(affine, one, 5)
    amended = with_task(one, engine.amend(one.id, AmendmentRequest(1, SplitImage(0, (1,), 77))))
    for _ in range(4):
        engine.step()
    snapshots = [each for each in engine.take_snapshots(one.id, epoch=1) if each.image in kept_images]
    expected = finish(engine)
    successor = Engine({"affine": affine})
    successor.add(amended, snapshots)
    affine.shapes.clear()
    latents = finish(successor)
    assert len(affine.shapes) == (STEPS - 9 if kept_images == {0, 1} else STEPS)
    assert latents.keys() == expected.keys()
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


def test_snapshots_from_before_a_change_that_they_should_follow_are_not_continued(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    """A repeated message brought the job without its change; the change holds from step 3 on."""
    one = job(recipe("fox", steps=STEPS, guidance=3.0))
    amended = with_task(one, start(affine, one, 3).amend(one.id, AmendmentRequest(1, SetNegative("fog"))))
    stale_snapshots = start(affine, one, 5).take_snapshots(one.id, epoch=1)
    current_snapshots = start(affine, amended, 5).take_snapshots(one.id, epoch=1)
    expected = finish(start(affine, amended, 0))
    for snapshots, step_count in ((stale_snapshots, STEPS), (current_snapshots, STEPS - 5)):
        successor = Engine({"affine": affine})
        successor.add(amended, snapshots)
        affine.shapes.clear()
        latents = finish(successor)
        assert len(affine.shapes) == step_count
        assert all(torch.equal(latents[key], expected[key]) for key in expected)


def test_a_change_is_encoded_beside_the_batch_as_the_engine_will_ask_for_it(recipe: Make) -> None:
    asked: list[tuple[str, int, bool]] = []

    def encode(text: str, state: Recipe, *, negative: bool = False) -> None:
        asked.append((text, len(state.concepts), negative))

    def list_asked(one: Recipe, change: Change) -> list[tuple[str, int, bool]]:
        asked.clear()
        encode_change(one, change, cast(Any, SimpleNamespace(encode_conditioning=encode)))
        return [each for each in asked if not each[2]] if one.guidance != 1.0 else asked[:]

    fox = recipe(concepts=(Concept("fox"),), guidance=4.0)
    new = (Concept("terrier"),)
    assert list_asked(fox, SetConcepts(new)) == [("terrier", 1, False)] * 2
    faded = list_asked(fox, SetConcepts(new, fade_steps=5))
    assert sorted(faded) == [("fox", 2, False), ("terrier", 1, False), ("terrier", 2, False)]
    unguided = recipe(concepts=(Concept("fox"),), guidance=1.0, negative="blur")
    assert not has_new_texts(fox, SetGuidance(6.0))
    assert has_new_texts(unguided, SetGuidance(6.0))
    assert list_asked(unguided, SetGuidance(6.0)) == [("fox", 1, False), ("blur", 1, True)] * 2
