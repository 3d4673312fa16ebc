"""`--best`: refused where no judge can choose; the finished job's recipe knows the noise of each chosen picture."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from bot.domain.errors import UserError
from bot.domain.texts import format_footer
from bot.jobs.beginnings import BranchEdit, branch_recipe, single_image
from bot.jobs.model_catalog import DEFAULT_POOL, SHIPPED_MODEL, CatalogEntry
from bot.jobs.recipe import (
    can_interpolate,
    interpolate_images,
    interpolation_recipes,
    pin_batch_shape,
    remix_recipe,
    renew_recipe,
    reroll_recipe,
    vary_recipe,
)
from bot.prompt import build_recipe, parse
from bot.web.answers import describe_job
from engine.contract import Branch, NoiseAncestor, Recipe, estimate_cost

WITHOUT_JUDGE = replace(SHIPPED_MODEL, has_judge=False)


def build_best(text: str = "a lamp --best", **changes: Any) -> Recipe:
    (parsed_prompt,) = parse(f"{text} --evaluations all", None).prompts
    return replace(build_recipe(parsed_prompt, SHIPPED_MODEL, 7), **changes)


CHOSEN = build_best("a lamp --best --count 2", chosen_candidates=(3, 0))


def test_it_draws_twice_as_many_and_costs_twice_as_much() -> None:
    recipe = build_best()
    plain = build_best("a lamp")
    assert (recipe.count, recipe.candidate_count, plain.candidate_count) == (4, 8, 0)
    assert estimate_cost(recipe, SHIPPED_MODEL) == pytest.approx(2 * estimate_cost(plain, SHIPPED_MODEL), rel=0.01)
    assert "best 4 of 8" in format_footer(recipe)
    (from_option,) = parse("a lamp", None, options={"best": True, "count": 1}).prompts
    assert build_recipe(from_option, SHIPPED_MODEL, 7).candidate_count == 2


def test_it_is_refused_without_a_judge_or_without_words() -> None:
    (parsed_prompt,) = parse("a lamp --best", None).prompts
    with pytest.raises(UserError, match="embedded has no judge that could choose the best pictures: leave out --best"):
        build_recipe(parsed_prompt, WITHOUT_JUDGE, 7)
    (wordless,) = parse("--best", None, allow_empty=True).prompts
    with pytest.raises(UserError, match="there are no words"):
        build_recipe(wordless, SHIPPED_MODEL, 7)
    with pytest.raises(UserError, match="it takes no value"):
        parse("a lamp", None, options={"best": "yes"})


def test_in_a_walk_it_changes_nothing_and_says_so() -> None:
    parsed = parse("a lamp --best --walk a cat", None)
    assert "In a walk, --best changes nothing." in parsed.notes
    assert build_recipe(parsed.prompts[0], WITHOUT_JUDGE, 7).candidate_count == 0
    assert {part.candidate_count for part in interpolation_recipes(build_best(), "a cat", 12)} == {0}


def test_what_keeps_the_noise_keeps_the_chosen_candidates() -> None:
    assert vary_recipe(CHOSEN, 0, 0.2, 99).lineage == (NoiseAncestor(seed=7, index=3, strength=0.2),)
    alone = single_image(CHOSEN, 0)
    assert (alone.seed, alone.count, alone.candidate_count, alone.chosen_candidates) == (10, 1, 0, ())
    (parsed_prompt,) = parse("a cat", None).prompts
    assert remix_recipe(CHOSEN, parsed_prompt, WITHOUT_JUDGE).chosen_candidates == (3, 0)
    (fewer,) = parse("a cat --count 1", None).prompts
    assert remix_recipe(CHOSEN, fewer, WITHOUT_JUDGE).chosen_candidates == (3,)
    assert can_interpolate(CHOSEN)
    walk = interpolate_images(CHOSEN)[0]
    assert walk.interpolation is not None
    assert (walk.interpolation.noises, walk.candidate_count, walk.chosen_candidates) == ((10, 7), 0, ())
    assert not can_interpolate(replace(CHOSEN, seed=2**32 - 2))
    assert pin_batch_shape(CHOSEN).bucket == pin_batch_shape(replace(CHOSEN, chosen_candidates=())).bucket == 8


def test_what_draws_other_noise_chooses_anew() -> None:
    (reseeded,) = parse("a cat --seed 3", None).prompts
    (more,) = parse("a cat --count 4", None).prompts
    (best,) = parse("a cat --best", None).prompts
    others = [remix_recipe(CHOSEN, parsed_prompt, SHIPPED_MODEL) for parsed_prompt in (reseeded, more, best)]
    others += [reroll_recipe(CHOSEN, 99), vary_recipe(CHOSEN, 0, 0.2, 99)]
    assert {other.chosen_candidates for other in others} == {()}
    assert [other.candidate_count for other in others] == [4, 8, 4, 4, 4]
    branch_edit = BranchEdit("a lamp", "a cat --best", {})
    branch = branch_recipe(single_image(CHOSEN, 1), "a" * 64, 4, branch_edit, SHIPPED_MODEL)
    assert isinstance(branch.start, Branch)
    assert (branch.candidate_count, branch.start.has_new_noise) == (2, True)


def test_without_a_judge_a_derived_job_inherits_no_choice_and_says_so() -> None:
    entry = CatalogEntry(WITHOUT_JUDGE, DEFAULT_POOL, True)
    for derived in (reroll_recipe(CHOSEN, 99), vary_recipe(CHOSEN, 0, 0.2, 99)):
        recipe, notes = renew_recipe(derived, entry)
        assert (recipe.candidate_count, recipe.drawn_count) == (0, 2)
        assert "all pictures that are drawn are shown" in notes[-1]
    assert renew_recipe(CHOSEN, entry) == (CHOSEN, ()), "a choice that is made needs no judge"
    (reseeded,) = parse("a cat --seed 3", None).prompts
    assert remix_recipe(CHOSEN, reseeded, WITHOUT_JUDGE).candidate_count == 0
    (best,) = parse("a cat --best", None).prompts
    with pytest.raises(UserError, match="leave out --best"):
        remix_recipe(CHOSEN, best, WITHOUT_JUDGE)


def test_a_remix_can_decline_the_inherited_choice() -> None:
    (declined,) = parse("a cat --seed 3", None, options={"best": False}).prompts
    assert remix_recipe(CHOSEN, declined, SHIPPED_MODEL).candidate_count == 0
    (overridden,) = parse("a lamp --best", None, options={"best": False}).prompts
    assert build_recipe(overridden, SHIPPED_MODEL, 7).candidate_count == 0, "options win over flags"


def test_before_the_choice_nobody_knows_the_noise_of_a_picture() -> None:
    for derive in (lambda recipe: vary_recipe(recipe, 0, 0.2, 99), lambda recipe: single_image(recipe, 0)):
        with pytest.raises(UserError, match="The judge has not chosen"):
            derive(build_best())


@pytest.mark.asyncio
async def test_a_finished_job_remembers_its_choice(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("a lamp --seed 7 --count 2", ann, destination, best=True)

    async def is_finished():
        return (await app.services.job_views.load_view(accepted.job)).state == "finished"

    await wait_until(is_finished)
    view = await app.services.job_views.load_view(accepted.job)
    assert (view.task.count, view.task.candidate_count, view.task.chosen_candidates) == (2, 4, (2, 3))
    assert describe_job(view, ann).chosen == (2, 3)
    assert [picture.index for picture in view.pictures] == [0, 1]
    variation = await app.services.variations.vary(accepted.job, 1, ann, destination)
    recipe = (await app.services.job_views.load_view(variation.job)).task
    assert (recipe.lineage, recipe.drawn_count) == ((NoiseAncestor(seed=7, index=3, strength=0.2),), 4)
    reproduction = await app.services.variations.reproduce(accepted.job, ann, destination)
    recipe = (await app.services.job_views.load_view(reproduction.job)).task
    assert (recipe.chosen_candidates, recipe.drawn_count, recipe.bucket) == ((2, 3), 2, 8)
