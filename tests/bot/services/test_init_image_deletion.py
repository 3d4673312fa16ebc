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
from bot.services.init_images.request import InitImages, JobImageRef
from bot.store.deletion import deletion_steps, retention
from bot.store.fairness.ledger import run_with_ledger
from bot.store.jobs import queries
from bot.store.moderation import reviews
from tests.bot.conftest import png
from tests.bot.services.test_edits import kept, opened, over

__all__ = ["kept"]
pytestmark = pytest.mark.asyncio
BOB, EVE = Member("local:bob", "Bob", "local"), Member("local:eve", "Eve", "local")
MOD = Member("local:mo", "Mo", "local", is_moderator=True)
INPUT_KINDS = ("input", "mask", "branch")


async def start_finished_job(workplace, until, ann, here):
    """A finished job of Ann's, by a worker whose pictures all differ."""
    house, apprentice = await opened(workplace, until)

    async def picture(job, epoch, image):
        out, noise = io.BytesIO(), random.Random(f"{job.id} {image}").randbytes(64 * 64 * 3)
        Image.frombytes("RGB", (64, 64), noise).save(out, "PNG")
        await apprentice.keep(job, epoch, image, "image", out.getvalue(), 64)

    apprentice.picture = picture
    (ticket,) = await house.services.jobs.imagine("a lamp --seed 7 --count 2 --steps 40 --ar 1:1", ann, here)
    return house, apprentice, await over(house, ticket.job, until)


async def derive_jobs(house, first, until, here):
    """A job of each kind from Ann's second picture, and a reroll of the zoom."""
    services, white = house.services, png(64, 64, 255)
    tickets = {
        "edit": await services.edits.edit(first.id, 1, white, BOB, here),
        "zoom": await services.edits.zoom(first.id, 1, 2.0, BOB, here),
        "pan": await services.edits.pan(first.id, 1, "left", BOB, here),
        "branch": await services.edits.branch(first.id, 1, 20, EVE, here),
        "shots": (await services.jobs.imagine("a cat", EVE, here, init_images=InitImages((JobImageRef(first.id, 1),))))[
            0
        ],
    }
    views = {name: await over(house, ticket.job, until) for name, ticket in tickets.items()}
    again = await services.variations.reroll(views["zoom"].id, EVE, here)
    return {**views, "again": await over(house, again.job, until)}


async def contents(house, job, *kinds):
    return {one.sha256 for one in await house.store.query(queries.list_pictures, [job]) if one.kind in kinds}


async def assert_all_refused(house, views, here, sentence, status):
    for name, view in views.items():
        for ask in (
            house.services.variations.reroll(view.id, BOB, here),
            house.services.variations.reproduce(view.id, BOB, here),
            house.services.variations.vary(view.id, 0, BOB, here),
            house.services.variations.remix(view.id, 0, "a dog", BOB, here),
        ):  # fmt: skip
            with pytest.raises(UserError, match=sentence) as refused:
                await ask
            assert refused.value.status == status, name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["deleted", "forgotten"])
async def test_init_images_go_with_their_source_and_derived_pictures_stay(
    workplace, until, ann, here, kept, way
):  # fmt: skip
    house, _, first = await start_finished_job(workplace, until, ann, here)
    views = await derive_jobs(house, first, until, here)
    independent = await house.services.edits.zoom(views["edit"].id, 0, 2.0, EVE, here)
    independent = await over(house, independent.job, until)
    files = await contents(house, first.id, "image", "ladder")
    for view in views.values():
        files |= await contents(house, view.id, "input", "branch")
    assert len(files) == 6, "two pictures and ladders, two canvases"
    assert files <= kept()
    if way == "deleted":
        await house.services.moderation.delete_pictures(first.id, ann)
    else:
        await house.services.data_deletion.request_deletion(ann.id)
        await until(lambda: not files & kept())
    assert not files & kept()
    await assert_all_refused(house, views, here, INIT_IMAGE_GONE, 404)
    for view in (*views.values(), independent):
        assert len(await house.services.gallery.read_all_for_members(view.id)) == view.task.count
    assert await house.services.variations.reroll(independent.id, BOB, here), "the edit is an independent picture"
    await house.services.edits.edit(views["edit"].id, 0, png(64, 64, 255), BOB, here)


@pytest.mark.slow
async def test_a_canvas_goes_with_its_zoom_as_well_as_with_its_source(
    workplace, until, ann, here, kept
):  # fmt: skip
    house, _, first = await start_finished_job(workplace, until, ann, here)
    zoom = await over(house, (await house.services.edits.zoom(first.id, 1, 2.0, BOB, here)).job, until)
    again = await over(house, (await house.services.variations.reroll(zoom.id, EVE, here)).job, until)
    canvas = await contents(house, again.id, "input")
    assert canvas == await contents(house, zoom.id, "input")
    await house.services.moderation.delete_pictures(zoom.id, BOB)
    assert not await contents(house, again.id, "input")
    await house.services.moderation.delete_pictures(first.id, ann)
    await until(lambda: not canvas & kept())
    assert len(await house.services.gallery.read_all_for_members(again.id)) == again.task.count


async def test_deletion_by_age_leaves_derived_jobs_whole(workplace, until, ann, here, kept):
    house, _, first = await start_finished_job(workplace, until, ann, here)
    ticket = await house.services.edits.edit(first.id, 1, png(64, 64, 255), BOB, here)
    edited = await over(house, ticket.job, until)
    inputs = await contents(house, edited.id, *INPUT_KINDS)
    assert await house.store.write(retention.mark_removed, [first.id], "age", 5.0) == [first.id]
    await house.retention.sweep()
    assert await house.store.get_job(first.id) is None
    assert inputs <= kept()
    again = await house.services.variations.reroll(edited.id, BOB, here)
    assert (await over(house, again.job, until)).state == "finished"


@pytest.mark.slow
async def test_an_uploaded_init_image_belongs_to_its_uploader(workplace, until, ann, here, kept):
    house, _, _ = await start_finished_job(workplace, until, ann, here)
    services, bring = house.services, InitImages((png(32, 32),))
    (mine,) = await services.jobs.imagine("", ann, here, init_images=bring)
    (hers,) = await services.jobs.imagine("", EVE, here, init_images=bring)
    views = [await over(house, ticket.job, until) for ticket in (mine, hers)]
    varied = [(await services.variations.vary(view.id, 0, BOB, here)).job for view in views]
    for job in varied:
        await over(house, job, until)
    (content,) = await contents(house, hers.job, "input")
    await house.services.moderation.delete_pictures(mine.job, ann)
    assert content in kept()
    assert [await contents(house, job, "input") for job in varied] == [set(), {content}]
    await house.services.moderation.delete_pictures(hers.job, EVE)
    assert content not in kept()


@pytest.mark.slow
async def test_no_job_starts_again_from_a_held_init_image(workplace, until, ann, here):
    house, _, first = await start_finished_job(workplace, until, ann, here)
    views = await derive_jobs(house, first, until, here)
    await house.store.write(reviews.review_picture, first.id, 1, "hidden", MOD, 1.0)
    await assert_all_refused(house, views, here, "stays hidden: a moderator has looked at it", 403)
    await house.store.write(reviews.review_picture, first.id, 1, "shown", MOD, 2.0)
    for view in views.values():
        await over(house, (await house.services.variations.reroll(view.id, BOB, here)).job, until)


async def test_a_waiting_job_fails_if_its_init_image_is_deleted(workplace, until, ann, here):
    house, apprentice, first = await start_finished_job(workplace, until, ann, here)
    await house.services.rule_admin.set_rule(replace(ann, is_admin=True), "guild", "", "running", "1")
    apprentice.go.clear()
    running = await house.services.jobs.imagine("a cat", BOB, here)
    ticket = await house.services.edits.edit(first.id, 0, png(64, 64, 255), BOB, here)
    await until(lambda: running[0].job in apprentice.begun)
    await house.services.moderation.delete_pictures(first.id, ann)
    apprentice.go.set()
    view = await over(house, ticket.job, until)
    assert (view.state, view.reason) == ("failed", INIT_IMAGE_GONE)
    assert view.cost == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["zoom", "shots"])
async def test_a_deletion_during_the_request_wins(workplace, until, ann, here, way):
    house, _, first = await start_finished_job(workplace, until, ann, here)
    take = house.services.jobs._job_maker.admit

    async def late(*args, **more):
        await house.services.moderation.delete_pictures(first.id, ann)
        return await take(*args, **more)

    house.services.jobs._job_maker.admit = late
    ask = house.services.edits.zoom(first.id, 0, 2.0, BOB, here)
    if way == "shots":
        ask.close()
        ask = house.services.jobs.imagine("a cat", BOB, here, init_images=InitImages((JobImageRef(first.id, 0),)))
    with pytest.raises(UserError, match=INIT_IMAGE_GONE):
        await ask


async def test_an_init_image_counts_as_deleted_while_its_file_still_exists(workplace, until, ann, here):
    house, _, first = await start_finished_job(workplace, until, ann, here)
    other = await contents(house, first.id, "image")
    assert (
        await house.store.query(run_with_ledger, ann, 1.0, lambda ledger: ledger.is_input_deleted(None, sorted(other)))
        is False
    )
    await house.store.write(deletion_steps.mark_deleted, [first.id], (ann.id, "Ann"), 1.0)
    for parent, names in ((None, sorted(other)), (first.id, ["0" * 64])):
        assert await house.store.query(
            run_with_ledger, ann, 1.0, lambda ledger, p=parent, n=names: ledger.is_input_deleted(p, n)
        )
    assert not await house.store.query(
        run_with_ledger, ann, 1.0, lambda ledger: ledger.is_input_deleted(None, ["0" * 64])
    )
