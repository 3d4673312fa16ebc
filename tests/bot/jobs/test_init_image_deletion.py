"""Edits, zooms, branches and variations after their init image is deleted, forgotten or held."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from PIL import Image

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE
from bot.jobs.init_images import InitImages, JobImageRef
from bot.services.data_deletion import DataDeletion
from bot.store.deletion import deletion_steps, retention
from bot.store.fairness.ledger import run_with_ledger
from bot.store.jobs import queries
from bot.store.moderation import reviews
from shared.app_harness import open_app_and_worker, wait_for_end
from shared.picture_files import make_png

pytestmark = pytest.mark.asyncio
BOB = Member("local:bob", "Bob", "local")
EVE = Member("local:eve", "Eve", "local")
MOD = Member("local:mo", "Mo", "local", is_moderator=True)
INPUT_KINDS = ("input", "mask", "branch")


async def start_finished_job(harness, wait_until, ann, destination):
    """A finished job of Ann's, by a worker whose pictures all differ."""
    app, worker = await open_app_and_worker(harness, wait_until)

    async def picture(job, epoch, image):
        buffer = io.BytesIO()
        noise = random.Random(f"{job.id} {image}").randbytes(64 * 64 * 3)
        Image.frombytes("RGB", (64, 64), noise).save(buffer, "PNG")
        await worker.publish_blob(job, epoch, image, "image", buffer.getvalue(), 64)

    worker.publish_picture = picture
    (accepted,) = await app.services.jobs.imagine("a lamp --seed 7 --count 2 --steps 40 --ar 1:1", ann, destination)
    return app, worker, await wait_for_end(app, accepted.job, wait_until)


async def derive_jobs(app, first, wait_until, destination):
    """A job of each kind from Ann's second picture, and a reroll of the zoom."""
    services = app.services
    white = make_png(64, 64, 255)
    accepted_jobs = {
        "edit": await services.edits.edit(first.id, 1, white, BOB, destination),
        "zoom": await services.edits.zoom(first.id, 1, 2.0, BOB, destination),
        "pan": await services.edits.pan(first.id, 1, "left", BOB, destination),
        "branch": await services.edits.branch(first.id, 1, 20, EVE, destination),
        "shots": (
            await services.jobs.imagine("a cat", EVE, destination, init_images=InitImages((JobImageRef(first.id, 1),)))
        )[0],
    }
    views = {name: await wait_for_end(app, accepted.job, wait_until) for name, accepted in accepted_jobs.items()}
    reroll = await services.variations.reroll(views["zoom"].id, EVE, destination)
    return {**views, "again": await wait_for_end(app, reroll.job, wait_until)}


async def contents(app, job, *kinds):
    return {one.sha256 for one in await app.store.query(queries.list_pictures, [job]) if one.kind in kinds}


async def assert_all_refused(app, views, destination, sentence, status):
    for name, view in views.items():
        for request in (
            app.services.variations.reroll(view.id, BOB, destination),
            app.services.variations.reproduce(view.id, BOB, destination),
            app.services.variations.vary(view.id, 0, BOB, destination),
            app.services.variations.remix(view.id, 0, "a dog", BOB, destination),
        ):
            with pytest.raises(UserError, match=sentence) as error:
                await request
            assert error.value.status == status, name


@pytest.mark.slow
@pytest.mark.parametrize("deletion_method", ["deleted", "forgotten"])
async def test_init_images_go_with_their_source_and_derived_pictures_stay(
    harness, wait_until, ann, destination, stored_names, deletion_method
):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    views = await derive_jobs(app, first, wait_until, destination)
    independent_job = await app.services.edits.zoom(views["edit"].id, 0, 2.0, EVE, destination)
    independent_job = await wait_for_end(app, independent_job.job, wait_until)
    files = await contents(app, first.id, "image", "ladder")
    for view in views.values():
        files |= await contents(app, view.id, "input", "branch")
    assert len(files) == 6, "two pictures and ladders, two canvases"
    assert files <= stored_names()
    if deletion_method == "deleted":
        await app.services.moderation.delete_pictures(first.id, ann)
    else:
        await app.services.get(DataDeletion).request_deletion(ann.id)
        await wait_until(lambda: not files & stored_names())
    assert not files & stored_names()
    await assert_all_refused(app, views, destination, INIT_IMAGE_GONE, 404)
    for view in (*views.values(), independent_job):
        assert len(await app.services.gallery.read_all_for_members(view.id)) == view.task.count
    assert await app.services.variations.reroll(independent_job.id, BOB, destination), (
        "the edit is an independent picture"
    )
    await app.services.edits.edit(views["edit"].id, 0, make_png(64, 64, 255), BOB, destination)


@pytest.mark.slow
async def test_a_canvas_goes_with_its_zoom_as_well_as_with_its_source(
    harness, wait_until, ann, destination, stored_names
):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    zoom = await wait_for_end(app, (await app.services.edits.zoom(first.id, 1, 2.0, BOB, destination)).job, wait_until)
    reroll = await wait_for_end(app, (await app.services.variations.reroll(zoom.id, EVE, destination)).job, wait_until)
    canvas = await contents(app, reroll.id, "input")
    assert canvas == await contents(app, zoom.id, "input")
    await app.services.moderation.delete_pictures(zoom.id, BOB)
    assert not await contents(app, reroll.id, "input")
    await app.services.moderation.delete_pictures(first.id, ann)
    await wait_until(lambda: not canvas & stored_names())
    assert len(await app.services.gallery.read_all_for_members(reroll.id)) == reroll.task.count


async def test_deletion_by_age_leaves_derived_jobs_whole(harness, wait_until, ann, destination, stored_names):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    accepted = await app.services.edits.edit(first.id, 1, make_png(64, 64, 255), BOB, destination)
    edited = await wait_for_end(app, accepted.job, wait_until)
    inputs = await contents(app, edited.id, *INPUT_KINDS)
    assert await app.store.write(retention.mark_removed, [first.id], "age", 5.0) == [first.id]
    await app.retention.sweep()
    assert await app.store.get_job(first.id) is None
    assert inputs <= stored_names()
    reroll = await app.services.variations.reroll(edited.id, BOB, destination)
    assert (await wait_for_end(app, reroll.job, wait_until)).state == "finished"


@pytest.mark.slow
async def test_an_uploaded_init_image_belongs_to_its_uploader(harness, wait_until, ann, destination, stored_names):
    app, _, _ = await start_finished_job(harness, wait_until, ann, destination)
    services = app.services
    init_images = InitImages((make_png(32, 32),))
    (ann_job,) = await services.jobs.imagine("", ann, destination, init_images=init_images)
    (eve_job,) = await services.jobs.imagine("", EVE, destination, init_images=init_images)
    views = [await wait_for_end(app, accepted.job, wait_until) for accepted in (ann_job, eve_job)]
    variations = [(await services.variations.vary(view.id, 0, BOB, destination)).job for view in views]
    for job in variations:
        await wait_for_end(app, job, wait_until)
    (content,) = await contents(app, eve_job.job, "input")
    await app.services.moderation.delete_pictures(ann_job.job, ann)
    assert content in stored_names()
    assert [await contents(app, job, "input") for job in variations] == [set(), {content}]
    await app.services.moderation.delete_pictures(eve_job.job, EVE)
    assert content not in stored_names()


@pytest.mark.slow
async def test_no_job_starts_again_from_a_held_init_image(harness, wait_until, ann, destination):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    views = await derive_jobs(app, first, wait_until, destination)
    await app.store.write(reviews.review_picture, first.id, 1, "hidden", MOD, 1.0)
    await assert_all_refused(app, views, destination, "stays hidden: a moderator has looked at it", 403)
    await app.store.write(reviews.review_picture, first.id, 1, "shown", MOD, 2.0)
    for view in views.values():
        await wait_for_end(app, (await app.services.variations.reroll(view.id, BOB, destination)).job, wait_until)


async def test_a_waiting_job_fails_if_its_init_image_is_deleted(harness, wait_until, ann, destination):
    app, worker, first = await start_finished_job(harness, wait_until, ann, destination)
    await app.services.rule_admin.set_rule(replace(ann, is_admin=True), "guild", "", "running", "1")
    worker.run_gate.clear()
    running_job = await app.services.jobs.imagine("a cat", BOB, destination)
    accepted = await app.services.edits.edit(first.id, 0, make_png(64, 64, 255), BOB, destination)
    await wait_until(lambda: running_job[0].job in worker.started_jobs)
    await app.services.moderation.delete_pictures(first.id, ann)
    worker.run_gate.set()
    view = await wait_for_end(app, accepted.job, wait_until)
    assert (view.state, view.reason) == ("failed", INIT_IMAGE_GONE)
    assert view.cost == 0


@pytest.mark.slow
@pytest.mark.parametrize("deletion_method", ["zoom", "shots"])
async def test_a_deletion_during_the_request_wins(harness, wait_until, ann, destination, deletion_method):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    take = app.services.jobs.admission.admit

    async def delete_first(*args, **options):
        await app.services.moderation.delete_pictures(first.id, ann)
        return await take(*args, **options)

    app.services.jobs.admission.admit = delete_first
    request = app.services.edits.zoom(first.id, 0, 2.0, BOB, destination)
    if deletion_method == "shots":
        request.close()
        request = app.services.jobs.imagine(
            "a cat", BOB, destination, init_images=InitImages((JobImageRef(first.id, 0),))
        )
    with pytest.raises(UserError, match=INIT_IMAGE_GONE):
        await request


async def test_an_init_image_counts_as_deleted_while_its_file_still_exists(harness, wait_until, ann, destination):
    app, _, first = await start_finished_job(harness, wait_until, ann, destination)
    other = await contents(app, first.id, "image")
    assert (
        await app.store.query(
            run_with_ledger, ann, 1.0, lambda ledger: ledger.is_input_deleted(None, tuple(sorted(other)))
        )
        is False
    )
    await app.store.write(deletion_steps.mark_deleted, [first.id], (ann.id, "Ann"), 1.0)
    for parent, names in ((None, tuple(sorted(other))), (first.id, ("0" * 64,))):
        assert await app.store.query(
            run_with_ledger, ann, 1.0, lambda ledger, p=parent, n=names: ledger.is_input_deleted(p, n)
        )
    assert not await app.store.query(
        run_with_ledger, ann, 1.0, lambda ledger: ledger.is_input_deleted(None, ("0" * 64,))
    )
