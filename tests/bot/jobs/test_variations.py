"""New jobs from finished ones: remixes, reproductions and strengths of variations, over a real broker and store."""

from __future__ import annotations

import msgspec
import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.recipe import pin_batch_shape, remix_recipe
from bot.jobs.variations import NOT_EXACT, VARIATION_STRENGTHS
from engine.contract import Concept, NoiseAncestor

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


async def wait_for_end(app, job, wait_until):
    async def is_finished():
        return (await app.services.job_views.load_view(job)).state == "finished"

    await wait_until(is_finished)
    return await app.services.job_views.load_view(job)


async def start_finished_job(
    harness, wait_until, ann, destination, text="a lamp --seed 7 --count 2 --no fog --steps 30"
):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine(text, ann, destination)
    return app, await wait_for_end(app, accepted.job, wait_until)


async def test_a_reproduction_is_the_same_recipe_with_its_batch_shape_pinned(harness, wait_until, ann, destination):
    app, first = await start_finished_job(harness, wait_until, ann, destination)
    accepted = await app.services.variations.reproduce(first.id, BOB, destination, key="one")
    assert accepted.notes == (NOT_EXACT,)
    reloaded_view = await app.services.job_views.load_view(accepted.job)
    assert reloaded_view.task == pin_batch_shape(first.task)
    assert (reloaded_view.action, reloaded_view.parent_image, reloaded_view.prompt) == (
        "reproduce",
        (first.id, 0),
        first.prompt,
    )
    assert (await app.services.variations.reproduce(first.id, BOB, destination, key="one")).job == accepted.job
    third = await app.services.variations.reproduce(accepted.job, BOB, destination)
    assert third.notes == (), "an exact run is reproduced to the byte"
    upscale = await app.services.variations.upscale(first.id, 0, ann, destination)
    with pytest.raises(UserError, match="reproduce its original"):
        await app.services.variations.reproduce(upscale.job, BOB, destination)


async def test_a_remix_uses_another_prompt_with_the_same_noise(harness, wait_until, ann, destination):
    app, first = await start_finished_job(harness, wait_until, ann, destination)
    (accepted,) = await app.services.variations.remix(first.id, None, "a blue lamp", BOB, destination)
    view = await app.services.job_views.load_view(accepted.job)
    assert view.task == msgspec.structs.replace(first.task, concepts=(Concept("a blue lamp"),))
    assert (view.action, view.parent_image, view.prompt) == ("remix", (first.id, 0), "a blue lamp")
    assert accepted.notes == ()
    (remix,) = await app.services.variations.remix(
        first.id, None, "a blue lamp --steps 12 --ar 2:1 --strength 0.4", BOB, destination, negative=""
    )
    assert any("--strength and --iw change nothing in a remix" in note for note in remix.notes)
    recipe = (await app.services.job_views.load_view(remix.job)).task
    assert (recipe.negative, recipe.steps, recipe.width / recipe.height) == ("", 12, 2)


async def test_a_remix_of_one_picture_varies_it_and_a_reroll_uses_new_noise(harness, wait_until, ann, destination):
    app, first = await start_finished_job(harness, wait_until, ann, destination)
    (accepted,) = await app.services.variations.remix(
        first.id, 1, "a blue lamp", BOB, destination, strength=VARIATION_STRENGTHS["strong"]
    )
    view = await app.services.job_views.load_view(accepted.job)
    assert view.task.lineage == (NoiseAncestor(seed=7, index=1, strength=0.6),)
    assert view.parent_image == (first.id, 1)
    (reroll,) = await app.services.variations.remix(first.id, None, "a blue lamp", BOB, destination, strength=1)
    recipe = (await app.services.job_views.load_view(reroll.job)).task
    assert recipe.seed != 7
    assert recipe.lineage == ()
    upscale = await wait_for_end(
        app, (await app.services.variations.upscale(first.id, 1, ann, destination)).job, wait_until
    )
    (remix,) = await app.services.variations.remix(upscale.id, 0, "a red lamp", BOB, destination, strength=0.15)
    assert (await app.services.job_views.load_view(remix.job)).parent_image == (first.id, 1), (
        "the parent is the original picture"
    )


async def test_braces_make_several_remixes_and_all_are_admitted_or_none(harness, wait_until, ann, destination):
    app, first = await start_finished_job(harness, wait_until, ann, destination)
    red, blue = await app.services.variations.remix(first.id, None, "a {red, blue} lamp", BOB, destination)
    assert (red.prompt, blue.prompt) == ("a red lamp", "a blue lamp")
    before = len(await app.services.job_views.load_recent())
    for invalid_text in ("", "a lamp --model other", "a lamp --sampler nothing", "x" * 2001):
        with pytest.raises(UserError):
            await app.services.variations.remix(first.id, None, invalid_text, BOB, destination)
    with pytest.raises(UserError, match="no such picture"):
        await app.services.variations.remix(first.id, 3, "a lamp", BOB, destination)
    for strength in (0, -1, 1.5):
        with pytest.raises(UserError, match="strength"):
            await app.services.variations.vary(first.id, 0, BOB, destination, strength=strength)
    assert len(await app.services.job_views.load_recent()) == before


async def test_a_remix_of_an_exact_job_is_exact(harness, wait_until, ann, destination):
    _, first = await start_finished_job(harness, wait_until, ann, destination)
    from bot.jobs.model_catalog import SHIPPED_MODEL
    from bot.prompt import parse

    pinned_recipe = pin_batch_shape(first.task)
    assert pinned_recipe.bucket == 4
    (request,) = parse("a lamp:: a table:: a cat:: a dog", None).prompts
    assert remix_recipe(pinned_recipe, request, SHIPPED_MODEL).bucket == 16


async def test_a_job_above_todays_limit_says_how_to_ask_for_less(harness, wait_until, ann, destination):
    app, first = await start_finished_job(harness, wait_until, ann, destination, "a lamp --steps 30")
    admin = Member("local:ada", "Ada", first.guild, is_moderator=True, is_admin=True)
    await app.services.rule_admin.set_rule(admin, "guild", "", "steps", "20")
    for action in (
        app.services.variations.vary(first.id, 0, ann, destination),
        app.services.variations.reroll(first.id, ann, destination),
    ):
        with pytest.raises(UserError, match="at most 20 are allowed here: remix it with --steps 20"):
            await action
    with pytest.raises(UserError, match="here: add --steps 20"):
        await app.services.variations.remix(first.id, None, "a blue lamp", ann, destination)
    (accepted,) = await app.services.variations.remix(first.id, None, "a blue lamp --steps 20", ann, destination)
    assert accepted.steps == 20


async def test_a_finished_draft_is_the_same_recipe_with_all_evaluations(harness, wait_until, ann, destination):
    text = "a lamp --seed 7 --count 1 --steps 40 --draft"
    app, draft = await start_finished_job(harness, wait_until, ann, destination, text)
    accepted = await app.services.variations.finish(draft.id, BOB, destination, key="one")
    assert (draft.task.evaluations, accepted.evaluations) == (25, 40)
    finished = await wait_for_end(app, accepted.job, wait_until)
    assert finished.task == msgspec.structs.replace(draft.task, evaluations=0)
    assert (finished.action, finished.parent_image, finished.state) == ("finish", (draft.id, 0), "finished")
    assert (await app.services.variations.finish(draft.id, BOB, destination, key="one")).job == accepted.job
    with pytest.raises(UserError, match="as fine as it can be"):
        await app.services.variations.finish(accepted.job, BOB, destination)
