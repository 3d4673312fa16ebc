"""At which steps a recipe evaluates its network, and what that costs."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bot.jobs.model_catalog import SHIPPED_MODEL
from engine.contract import (
    PIPELINE_SAMPLERS,
    Amendment,
    Branch,
    Concept,
    ImageToImage,
    InitImage,
    Recipe,
    Sampler,
    SetGuidance,
    SplitImage,
    count_evaluations,
    count_row_steps,
    count_usual_evaluations,
    estimate_cost,
    find_done_share,
    find_next_evaluation,
    has_skipped_steps,
    is_draft,
    list_evaluated_steps,
    list_lives,
)

SHA = "a" * 64
# Of 1000 steps of DDPM, guidance from 0.3 to 0.8.
GOLDEN_STEPS = (
    0, 51, 101, 151, 201, 251, 300, 310, 323, 340, 363, 392, 429, 471, 517, 565, 611, 655, 696, 735, 770, 800, 835, 864,
    891, 916, 939, 961, 981, 999,
)  # fmt: skip


def make_recipe(**fields: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "concepts": (Concept("a fox"),),
        "model": "embedded",
        "sampler": "ddpm",
        "steps": 1000,
        "seed": 1,
        "guidance": 4.0,
        "guidance_start": 0.3,
        "guidance_stop": 0.8,
        "width": 64,
        "height": 64,
        "dtype": "float32",
    }
    return Recipe(**(defaults | fields))


@given(
    st.sampled_from(get_args(Sampler)),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
)
def test_the_steps_that_must_have_an_evaluation_have_one(
    sampler: Any, steps: int, evaluations: int, interval: list[float], strength: float, stop_at: float
) -> None:
    recipe = make_recipe(
        sampler=sampler,
        steps=steps,
        evaluations=evaluations,
        guidance_start=interval[0],
        guidance_stop=interval[1],
        start=ImageToImage((InitImage(SHA),), strength),
        stop_at=stop_at,
    )
    listed = list(list_evaluated_steps(recipe))
    assert listed == sorted(set(listed))
    needed = {0, steps - 1, recipe.first_step, recipe.end_step - 1, *({recipe.end_step} - {steps})}
    needed |= {step for step in (int(interval[0] * steps), int(interval[1] * steps)) if 0 < step < steps}
    assert needed <= set(listed) <= set(range(steps))
    least, most = (evaluations, max(evaluations, 2) + len(needed)) if has_skipped_steps(recipe) else (steps, steps)
    assert min(least, steps) <= len(listed) <= most
    if evaluations >= 2 + len(needed):
        assert len(listed) == min(evaluations, steps), "the nearest steps give way"


def test_a_thousand_steps_have_as_many_evaluations_as_they_say() -> None:
    for evaluations in (25, 50, 100, 400):
        assert len(list_evaluated_steps(make_recipe(evaluations=evaluations))) == evaluations
    for evaluations in (0, 1000):
        assert list(list_evaluated_steps(make_recipe(evaluations=evaluations))) == list(range(1000))


def test_ddpm_asks_more_often_where_guidance_begins_and_at_the_end() -> None:
    recipe = make_recipe(evaluations=100)
    onset, middle, end = (count_evaluations(recipe, first, first + 50) for first in (300, 550, 950))
    assert onset > 2 * middle
    assert end > 1.5 * middle
    gaps = [find_next_evaluation(recipe, step) - step for step in list_evaluated_steps(recipe)]
    assert max(gaps) <= 20


def test_a_branch_keeps_the_evaluations_of_the_picture_that_it_leaves() -> None:
    recipe = make_recipe(evaluations=100)
    step = list_evaluated_steps(recipe)[40]
    branch = replace(recipe, start=Branch(SHA, step))
    assert list_evaluated_steps(branch) == list_evaluated_steps(recipe)
    assert count_evaluations(branch) == 60


def test_the_usual_number_is_a_hundred_of_many_steps_and_all_of_few() -> None:
    assert [count_usual_evaluations("ddpm", steps) for steps in (30, 100, 101, 1000)] == [0, 0, 100, 100]
    assert {count_usual_evaluations(sampler, 1000) for sampler in PIPELINE_SAMPLERS} == {0}
    assert (is_draft(make_recipe(evaluations=25)), is_draft(make_recipe(evaluations=26))) == (True, False)
    assert not is_draft(make_recipe(steps=20, evaluations=25))


def test_price_and_shares_count_evaluations() -> None:
    full = make_recipe()
    few = make_recipe(evaluations=100)
    guided = count_evaluations(few, 300, 800)
    assert count_row_steps(few) == 4 * (100 + guided)
    assert estimate_cost(few, SHIPPED_MODEL) < 0.15 * estimate_cost(full, SHIPPED_MODEL)
    assert find_done_share(full, 250) == 0.25
    assert [find_done_share(few, step) for step in (0, 1000)] == [0.0, 1.0]
    assert find_done_share(few, 300) == count_evaluations(few, 0, 300) / 100 < 0.3


def test_amendments_move_no_evaluation_and_a_split_begins_at_the_next_one() -> None:
    recipe = make_recipe(evaluations=50, count=2)
    step = list_evaluated_steps(recipe)[20]
    changes = (Amendment(1, step, SetGuidance(6.0, 0.1, 0.9)), Amendment(2, step, SplitImage(0, (2,), 9)))
    amended = replace(recipe, amendments=changes)
    assert list_evaluated_steps(amended) == list_evaluated_steps(recipe)
    (split,) = (life for life in list_lives(amended) if life.parent is not None)
    assert split.first_step == list_evaluated_steps(recipe)[21]


def test_the_steps_of_stored_recipes_never_change() -> None:
    """A recipe has their number alone. Another list would draw other pixels: give it a field of its own."""
    listed = list_evaluated_steps(make_recipe(evaluations=30))
    assert listed == GOLDEN_STEPS
    assert list_evaluated_steps(make_recipe(sampler="euler", steps=50, evaluations=8)) == (0, 8, 15, 22, 29, 36, 40, 49)
