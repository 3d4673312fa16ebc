"""Init images, edits and branches over a real broker and store: the bot keeps, sends, refuses and deletes."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from bot.store.jobs import queries
from engine.contract import Branch, Concept, ImageToImage, InitImage, estimate_cost
from shared.app_harness import finish_job, open_app_and_worker, wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")


@pytest.mark.slow
async def test_an_init_image_is_kept_sent_to_the_worker_and_deleted_with_its_job(
    harness, wait_until, ann, destination, stored_names
):
    app, worker = await open_app_and_worker(harness, wait_until)
    services = app.services
    (accepted,) = await services.jobs.imagine(
        "", ann, destination, init_images=InitImages((make_png(32, 32),)), strength=0.3
    )
    view = await wait_for_end(app, accepted.job, wait_until)
    sha = view.task.start.pictures[0].sha256
    content = await app.picture_store.get(sha)
    assert view.task.start == ImageToImage((InitImage(sha),), 0.3)
    assert (view.task.concepts, view.task.guidance) == ((Concept(""),), 1.0), "without a prompt there is no guidance"
    assert worker.fetched_blobs == {sha: content}, "the worker finds the image at the broker"
    assert sha in stored_names()
    rows = [one for one in await app.store.query(queries.list_pictures, [view.id]) if one.kind == "input"]
    assert [(one.sha256, one.bytes, one.width, one.height) for one in rows] == [(sha, len(content), 32, 32)]
    variation = await services.variations.vary(view.id, 0, BOB, destination)
    assert (await services.job_views.load_view(variation.job)).task.start == view.task.start
    await wait_for_end(app, variation.job, wait_until)
    await app.services.moderation.delete_pictures(view.id, ann)
    assert sha not in stored_names(), "the variation stays, without its init image"
    assert (await services.job_views.load_view(variation.job)).state == "finished"


async def test_a_refused_job_keeps_no_init_image(harness, wait_until, ann, destination, stored_names):
    app, _ = await open_app_and_worker(harness, wait_until)
    init_images = InitImages((make_png(32, 32),))
    with pytest.raises(UserError, match="--steps"):
        await app.services.jobs.imagine("a lamp --steps 5000", ann, destination, init_images=init_images)
    with pytest.raises(UserError, match="heun"):
        await app.services.jobs.imagine("a lamp --sampler heun", ann, destination, init_images=init_images)
    await app.services.rule_admin.set_rule(
        Member("local:o", "O", "local", is_owner=True, is_admin=True), "guild", "", "steps", "10"
    )
    with pytest.raises(UserError, match="at most 10"):
        await app.services.jobs.imagine("a lamp --steps 40", ann, destination, init_images=init_images)
    assert stored_names() == set()


async def test_invalid_init_images_are_refused_with_a_reason(harness, wait_until, ann, destination):
    app, _ = await open_app_and_worker(harness, wait_until)
    for init_images, reason in (
        (InitImages((b"no picture",)), "not supported here"),
        (InitImages(), "One to 5 pictures"),
        (InitImages((make_png(8, 8),) * 6), "One to 5 pictures"),
        (InitImages((make_png(8, 8),) * 2, weights=(1.0,)), "one weight"),
        (InitImages((make_png(32, 32),), make_png(32, 16, 255)), "of one shape"),
    ):
        with pytest.raises(UserError, match=reason):
            await app.services.jobs.imagine("a lamp", ann, destination, init_images=init_images)
    with pytest.raises(UserError, match="The prompt is empty"):
        await app.services.jobs.imagine("", ann, destination)
    (accepted,) = await app.services.jobs.imagine("a lamp --iw 2", ann, destination)
    assert any("--strength and --iw" in note for note in accepted.notes)


async def test_several_init_images_are_blended_with_their_weights(harness, wait_until, ann, destination):
    app, _ = await open_app_and_worker(harness, wait_until)
    init_images = InitImages((make_png(16, 16, 10), make_png(16, 16, 200)), weights=(1, 3))
    (accepted,) = await app.services.jobs.imagine("", ann, destination, init_images=init_images, action="blend")
    view = await app.services.job_views.load_view(accepted.job)
    assert [one.weight for one in view.task.start.pictures] == [1, 3]
    (wide_job,) = await app.services.jobs.imagine("", ann, destination, init_images=InitImages((make_png(40, 20),)))
    recipe = (await app.services.job_views.load_view(wide_job.job)).task
    assert recipe.width == 2 * recipe.height, "the shape of the init image"
    assert (view.action, view.task.start.strength) == ("blend", 0.5)


@pytest.mark.slow
async def test_a_finished_picture_can_be_edited_zoomed_out_and_panned(harness, wait_until, ann, destination):
    app, _, first = await finish_job(harness, wait_until, ann, destination)
    services = app.services
    second_picture = first.pictures[1]
    white = make_png(second_picture.width, second_picture.height, 255)
    accepted = await services.edits.edit(first.id, 1, white, BOB, destination, text="a red lamp --no fog")
    view = await wait_for_end(app, accepted.job, wait_until)
    assert view.task.start.pictures == (InitImage(second_picture.sha256),)
    assert view.task.start.mask == hashlib.sha256(await app.picture_store.get(view.task.start.mask)).hexdigest()
    assert (view.task.concepts, view.task.negative) == ((Concept("a red lamp"),), "fog")
    assert (view.action, view.parent_image, view.state) == ("edit", (first.id, 1), "finished")
    for child, action in (
        (await services.edits.zoom(first.id, 1, 2.0, BOB, destination), "zoom"),
        (await services.edits.pan(first.id, 1, "left", BOB, destination), "pan"),
    ):
        view = await wait_for_end(app, child.job, wait_until)
        assert (view.action, view.state) == (action, "finished")
        assert view.task.start.mask is not None
        assert view.task.seed != first.task.seed
        assert (view.task.width, view.task.height) == (first.task.width, first.task.height)
    with pytest.raises(UserError, match="Zoom out by"):
        await services.edits.zoom(first.id, 1, 3.0, BOB, destination)
    with pytest.raises(UserError):
        await services.edits.edit(first.id, 1, b"no mask", BOB, destination)


@pytest.mark.slow
async def test_a_branch_keeps_the_recipe_except_for_what_is_changed(harness, wait_until, ann, destination):
    app, worker, first = await finish_job(harness, wait_until, ann, destination)
    services = app.services
    assert await services.edits.list_branch_steps(first.id, 1, BOB) == (10, 20)
    rows = {(one.kind, one.image): one for one in await app.store.query(queries.list_pictures, [first.id])}
    sha = rows["ladder", 1].sha256
    same_recipe = await services.edits.branch(first.id, 1, 20, BOB, destination)
    assert same_recipe.notes == ()
    view = await wait_for_end(app, same_recipe.job, wait_until)
    base = msgspec.structs.replace(first.task, seed=8, count=1)
    assert view.task == msgspec.structs.replace(base, start=Branch(ladder=sha, step=20))
    assert (view.action, view.parent_image, view.state) == ("branch", (first.id, 1), "finished")
    assert worker.fetched_blobs[sha] == await app.picture_store.get(sha)
    near_branch = await services.edits.branch(first.id, 1, 17, BOB, destination, text="a red lamp --guidance 5")
    assert near_branch.notes == ("Branched at step 10: the nearest to 17 that keeps its latents.",)
    recipe = (await services.job_views.load_view(near_branch.job)).task
    assert (recipe.concepts, recipe.guidance, recipe.start.step, recipe.start.has_new_noise) == (
        (Concept("a red lamp"),),
        5.0,
        10,
        False,
    )
    other = await services.edits.branch(first.id, 1, 20, BOB, destination, seed=99)
    recipe = (await services.job_views.load_view(other.job)).task
    assert (recipe.seed, recipe.concepts, recipe.start.has_new_noise) == (99, first.task.concepts, True)
    with pytest.raises(UserError, match="its sampler cannot be changed"):
        await services.edits.branch(first.id, 1, 20, BOB, destination, text="a lamp --sampler euler")
    with pytest.raises(UserError, match="One branch at a time"):
        await services.edits.branch(first.id, 1, 20, BOB, destination, text="a {red, blue} lamp")


@pytest.mark.slow
async def test_the_rest_of_a_branch_may_take_more_steps_or_fewer(harness, wait_until, ann, destination):
    app, _, first = await finish_job(harness, wait_until, ann, destination)
    services = app.services
    profile = app.services.catalog.find_profile(None)
    recipes = {}
    for steps, text in ((100, "a lamp --steps 100"), (31, "a lamp --steps 31"), (80, "a lamp --quality 2")):
        branch = await services.edits.branch(first.id, 1, 20, BOB, destination, text=text)
        recipes[steps] = (await services.job_views.load_view(branch.job)).task
        start = recipes[steps].start
        assert (recipes[steps].steps, start.ladder_step, start.keyframe_step) == (steps, 20, 20)
        assert start.has_new_noise is False
        assert (recipes[steps].first_step, recipes[steps].end_step) == (-(-20 * steps // 40), steps)
    assert (
        estimate_cost(recipes[100], profile) > estimate_cost(recipes[80], profile) > estimate_cost(recipes[31], profile)
    )
    assert (
        await services.job_views.load_view(
            (await services.edits.branch(first.id, 1, 20, BOB, destination, steps=40)).job
        )
    ).task.start.ladder_step is None
    with pytest.raises(UserError, match="Of 1 steps none remains after step 20 of 40"):
        await services.edits.branch(first.id, 1, 20, BOB, destination, steps=1)


async def test_a_stopped_job_can_go_on_to_its_end(harness, wait_until, ann, destination):
    app, _, first = await finish_job(harness, wait_until, ann, destination, "a lamp --seed 7 --steps 40 --stop 50")
    assert (first.task.stop_at, first.task.end_step) == (0.5, 20)
    latest_branch = await app.services.edits.branch(first.id, 1, 40, BOB, destination)
    recipe = (await wait_for_end(app, latest_branch.job, wait_until)).task
    assert (recipe.start.step, recipe.stop_at, recipe.end_step) == (20, 1.0, 40)
