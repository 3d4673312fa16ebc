"""New jobs from finished ones: remixes, reproductions and strengths of variations, over a real broker and store."""

from __future__ import annotations

import msgspec
import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.services.jobs.derived_recipes import pin_batch_shape, remix_recipe
from bot.services.jobs.variations import NOT_EXACT, VARIATION_STRENGTHS
from engine.contract import Concept, NoiseAncestor

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


async def wait_for_end(house, job, until):
    async def is_finished():
        return (await house.services.job_views.load_view(job)).state == "finished"

    await until(is_finished)
    return await house.services.job_views.load_view(job)


async def start_finished_job(workplace, until, ann, here, text="a lamp --seed 7 --count 2 --no fog --steps 30"):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.services.live_workers())
    (ticket,) = await house.services.jobs.imagine(text, ann, here)
    return house, await wait_for_end(house, ticket.job, until)


async def test_a_reproduction_is_the_same_recipe_with_its_batch_shape_pinned(workplace, until, ann, here):
    house, first = await start_finished_job(workplace, until, ann, here)
    ticket = await house.services.variations.reproduce(first.id, BOB, here, key="one")
    assert ticket.notes == (NOT_EXACT,)
    again = await house.services.job_views.load_view(ticket.job)
    assert again.task == pin_batch_shape(first.task)
    assert (again.action, again.parent_image, again.prompt) == ("reproduce", (first.id, 0), first.prompt)
    assert (await house.services.variations.reproduce(first.id, BOB, here, key="one")).job == ticket.job
    third = await house.services.variations.reproduce(ticket.job, BOB, here)
    assert third.notes == (), "an exact run is reproduced to the byte"
    enlarged = await house.services.variations.upscale(first.id, 0, ann, here)
    with pytest.raises(UserError, match="reproduce its original"):
        await house.services.variations.reproduce(enlarged.job, BOB, here)


async def test_a_remix_uses_another_prompt_with_the_same_noise(workplace, until, ann, here):
    house, first = await start_finished_job(workplace, until, ann, here)
    (ticket,) = await house.services.variations.remix(first.id, None, "a blue lamp", BOB, here)
    view = await house.services.job_views.load_view(ticket.job)
    assert view.task == msgspec.structs.replace(first.task, concepts=(Concept("a blue lamp"),))
    assert (view.action, view.parent_image, view.prompt) == ("remix", (first.id, 0), "a blue lamp")
    assert ticket.notes == ()
    (plain,) = await house.services.variations.remix(
        first.id, None, "a blue lamp --steps 12 --ar 2:1", BOB, here, negative=""
    )
    recipe = (await house.services.job_views.load_view(plain.job)).task
    assert (recipe.negative, recipe.steps, recipe.width / recipe.height) == ("", 12, 2)


async def test_a_remix_of_one_picture_varies_it_and_a_reroll_uses_new_noise(workplace, until, ann, here):
    house, first = await start_finished_job(workplace, until, ann, here)
    (ticket,) = await house.services.variations.remix(
        first.id, 1, "a blue lamp", BOB, here, strength=VARIATION_STRENGTHS["strong"]
    )
    view = await house.services.job_views.load_view(ticket.job)
    assert view.task.lineage == (NoiseAncestor(seed=7, index=1, strength=0.6),)
    assert view.parent_image == (first.id, 1)
    (reroll,) = await house.services.variations.remix(first.id, None, "a blue lamp", BOB, here, strength=1)
    recipe = (await house.services.job_views.load_view(reroll.job)).task
    assert recipe.seed != 7
    assert recipe.lineage == ()
    enlarged = await wait_for_end(house, (await house.services.variations.upscale(first.id, 1, ann, here)).job, until)
    (remix,) = await house.services.variations.remix(enlarged.id, 0, "a red lamp", BOB, here, strength=0.15)
    assert (await house.services.job_views.load_view(remix.job)).parent_image == (first.id, 1), (
        "the parent is the original picture"
    )


async def test_braces_make_several_remixes_and_all_are_admitted_or_none(workplace, until, ann, here):
    house, first = await start_finished_job(workplace, until, ann, here)
    red, blue = await house.services.variations.remix(first.id, None, "a {red, blue} lamp", BOB, here)
    assert (red.prompt, blue.prompt) == ("a red lamp", "a blue lamp")
    before = len(await house.services.job_views.load_recent())
    for wrong in ("", "a lamp --model other", "a lamp --sampler nothing", "x" * 2001):
        with pytest.raises(UserError):
            await house.services.variations.remix(first.id, None, wrong, BOB, here)
    with pytest.raises(UserError, match="no such picture"):
        await house.services.variations.remix(first.id, 3, "a lamp", BOB, here)
    for strength in (0, -1, 1.5):
        with pytest.raises(UserError, match="strength"):
            await house.services.variations.vary(first.id, 0, BOB, here, strength=strength)
    assert len(await house.services.job_views.load_recent()) == before


async def test_a_remix_of_an_exact_job_is_exact(workplace, until, ann, here):
    _, first = await start_finished_job(workplace, until, ann, here)
    from bot.prompt import parse
    from bot.queue.model_catalog import SHIPPED_MODEL

    exact = pin_batch_shape(first.task)
    assert exact.bucket == 4
    (request,) = parse("a lamp:: a table:: a cat:: a dog", None).prompts
    assert remix_recipe(exact, request, SHIPPED_MODEL).bucket == 16


async def test_a_job_above_todays_limit_says_how_to_ask_for_less(workplace, until, ann, here):
    house, first = await start_finished_job(workplace, until, ann, here, "a lamp --steps 30")
    ada = Member("local:ada", "Ada", first.guild, is_moderator=True, is_admin=True)
    await house.services.rule_admin.set_rule(ada, "guild", "", "steps", "20")
    for action in (
        house.services.variations.vary(first.id, 0, ann, here),
        house.services.variations.reroll(first.id, ann, here),
    ):
        with pytest.raises(UserError, match="at most 20 are allowed here: remix it with --steps 20"):
            await action
    with pytest.raises(UserError, match="here: add --steps 20"):
        await house.services.variations.remix(first.id, None, "a blue lamp", ann, here)
    (ticket,) = await house.services.variations.remix(first.id, None, "a blue lamp --steps 20", ann, here)
    assert ticket.steps == 20
