"""The guidance interval: fewer rows outside it, the same picture as computed by hand, shared forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.batching.engine import Engine
from engine.contract import (
    Concept,
    JobRejected,
    Recipe,
    count_row_steps,
    count_rows,
    estimate_cost,
    find_guided_steps,
    is_guided,
    pinned_bucket,
)
from engine.sampling import COLUMNS, plan

Make = Callable[..., Any]


def compute_by_hand(affine: Any, recipe: Recipe) -> torch.Tensor:
    """DDIM on the affine network, with guidance only inside the recipe's interval."""
    table = plan(affine.scheduler_config, "ddim", recipe.steps)
    shape = affine.latent_shape(recipe.width, recipe.height)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(recipe.seed)) * table.init_sigma
    words, empty = (affine.encode_conditioning(text, recipe)[0] for text in (recipe.concepts[0].text, ""))
    for k in range(recipe.steps):
        coefficients = dict(zip(COLUMNS, table.table[k].tolist(), strict=True))
        conditional, unconditional = (
            affine.denoise(x[None] * coefficients["c"], torch.tensor([coefficients["t"]]), (each[None],), "float32")[0]
            for each in (words, empty)
        )
        output = (
            unconditional + recipe.guidance * (conditional - unconditional) if is_guided(recipe, k) else conditional
        )
        x = coefficients["A"] * x + coefficients["B"] * output
    return x


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8), (0.0, 0.5), (0.5, 1.0), (0.4, 0.4)])
def test_a_picture_matches_the_computation_by_hand(
    affine: Any, recipe: Make, job: Make, finish: Make, interval: tuple[float, float]
) -> None:
    one = recipe(sampler="ddim", steps=10, guidance=4.0, guidance_start=interval[0], guidance_stop=interval[1])
    engine = Engine({"affine": affine}, buckets=range(1, 9))
    one_job = job(one)
    engine.add(one_job)
    latents = finish(engine)[one_job.id, 0]
    torch.testing.assert_close(latents, compute_by_hand(affine, one), rtol=1e-5, atol=1e-5)
    assert affine.shapes[:10].count(2) == sum(is_guided(one, k) for k in range(10))  # the others took one row


def test_images_with_and_without_guidance_share_a_forward(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    recipes = [recipe(sampler="ddim", seed=seed, guidance_start=seed / 4, guidance_stop=0.9) for seed in range(4)]
    engine = Engine({"affine": affine}, buckets=range(1, 33))
    jobs = [job(each, user=f"user {number}") for number, each in enumerate(recipes)]
    for each in jobs:
        engine.add(each)
    latents = finish(engine)
    assert len(affine.shapes) == 10
    assert sorted(set(affine.shapes)) == [4, 5, 6, 7, 8]
    for each, one in zip(jobs, recipes, strict=True):
        torch.testing.assert_close(latents[each.id, 0], compute_by_hand(affine, one), rtol=1e-5, atol=1e-5)


def test_a_pinned_forward_is_smaller_outside_the_interval(affine: Any, recipe: Make, job: Make, finish: Make) -> None:
    one = recipe(sampler="ddim", count=4, bucket=8, guidance_start=0.5)
    engine = Engine({"affine": affine})
    engine.add(job(one))
    finish(engine)
    assert affine.shapes == [4] * 5 + [8] * 5


def test_rows_are_counted_and_charged_as_they_are_used(recipe: Make) -> None:
    fully_guided = recipe(count=4, guidance=4.0)
    half_guided = recipe(count=4, guidance=4.0, guidance_start=0.5)
    assert (
        count_rows(half_guided),
        count_rows(half_guided, is_guidance_on=False),
        count_row_steps(fully_guided),
        count_row_steps(half_guided),
    ) == (8, 4, 80, 60)
    three_concepts = recipe(concepts=(Concept("a", 2.0), Concept("b", 1.0), Concept("c", -1.0)), guidance_stop=0.5)
    assert (count_rows(three_concepts), count_rows(three_concepts, is_guidance_on=False)) == (4, 4)
    with_negative = recipe(concepts=(Concept("a", 1.0), Concept("b", -1.0)), guidance_stop=0.5)
    assert count_rows(with_negative, is_guidance_on=False) == count_rows(with_negative) == 3
    assert [
        pinned_bucket(each, False) for each in (recipe(bucket=8), recipe(bucket=8, guidance_start=0.5), fully_guided)
    ] == [4, 4, None]
    assert count_row_steps(recipe(count=3, bucket=4, guidance_start=0.5)) == 5 * 4 + 5 * 8


def test_the_cost_falls_with_the_rows(recipe: Make) -> None:
    from bot.jobs.model_catalog import SHIPPED_MODEL

    fully_guided, half_guided = (
        recipe(guidance=4.0, guidance_start=start, width=64, height=64) for start in (0.0, 0.5)
    )
    other = SHIPPED_MODEL.encode_ms * 2 / 1000 + SHIPPED_MODEL.decode_ms / 1000
    assert estimate_cost(half_guided, SHIPPED_MODEL) - other == pytest.approx(
        0.75 * (estimate_cost(fully_guided, SHIPPED_MODEL) - other)
    )


def test_a_network_with_guidance_as_an_input_takes_one_row_per_text(recipe: Make) -> None:
    assert count_rows(recipe(guidance_kind="network", guidance=3.5)) == 1
    assert count_rows(recipe("a", "b", guidance_kind="network")) == 2


@pytest.mark.parametrize("weight", [-0.5, -0.9, -0.999, -1.0, -1.5])
def test_a_negative_concept_stays_bounded_outside_the_interval(
    affine: Any, recipe: Make, job: Make, finish: Make, weight: float
) -> None:
    """The sum of the weights passes 0 there; the picture must stay bounded."""
    concepts = (Concept("a"), Concept("b", weight))
    sizes = []
    for start, stop in ((0.0, 1.0), (0.3, 0.8)):
        one = job(recipe(concepts=concepts, sampler="ddim", guidance=4.0, guidance_start=start, guidance_stop=stop))
        engine = Engine({"affine": affine})
        engine.add(one)
        sizes.append(float(finish(engine)[one.id, 0].abs().max()))
    assert sizes[1] <= 1.5 * sizes[0]


def test_an_interval_that_ends_before_it_begins_is_refused(affine: Any, recipe: Make, job: Make) -> None:
    with pytest.raises(JobRejected, match="before it starts"):
        Engine({"affine": affine}).add(job(recipe(guidance_start=0.8, guidance_stop=0.2)))


@given(st.integers(1, 1000), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_guided_steps_match_the_steps_inside_the_interval(steps: int, one: float, other: float) -> None:
    first, stop = sorted((one, other))
    assume(first < stop)
    recipe = Recipe(
        concepts=(Concept("x"),),
        model="m",
        sampler="ddim",
        steps=steps,
        seed=1,
        guidance=3.0,
        width=64,
        height=64,
        dtype="float32",
        guidance_start=first,
        guidance_stop=stop,
    )
    assert [k for k in range(steps) if is_guided(recipe, k)] == [*range(*find_guided_steps(recipe, 0, steps))]
