"""The studio from a prompt to a picture, over a real broker and a real store."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest
from PIL import Image

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.domain.events import JobEnded, JobProgress
from bot.domain.texts import format_cost
from bot.images import grid
from bot.images.grid import GAP
from bot.queue.job_request import offline_note
from bot.queue.model_catalog import SHIPPED_MODEL, CatalogEntry
from bot.services.jobs.derived_recipes import (
    largest_upscale,
    pin_batch_shape,
    upscale_cost,
    upscale_notes,
    vary_recipe,
)
from bot.services.jobs.variations import VARIATION_STRENGTHS
from bot.store.jobs import queries
from engine.contract import Concept, NoiseAncestor, Recipe, UpscaleTask, count_rows

BOB = Member("local:bob", "Bob", "local")


async def _wait_for_end(services, job, until):
    async def is_over():
        return (await services.job_views.load_view(job)).state in ("finished", "failed", "cancelled")

    await until(is_over)
    return await services.job_views.load_view(job)


@pytest.mark.asyncio
async def test_a_prompt_becomes_pictures_and_a_film(workplace, until, ann, here):
    app = await workplace.house()
    await workplace.worker()
    await until(lambda: app.services.live_workers())
    (ticket,) = await app.services.jobs.imagine("terrier, looking up --seed 7", ann, here)
    assert ticket.has_worker
    assert (ticket.seed, ticket.steps, ticket.sampler, ticket.count) == (7, 40, "ddim", 4)
    view = await _wait_for_end(app.services, ticket.job, until)
    assert (view.state, view.seconds, view.ms_per_step) == ("finished", 1.5, 2.0)
    assert [shot.index for shot in view.pictures] == [0, 1, 2, 3]
    assert view.ladder_images == (0, 1, 2, 3)
    assert view.cost == pytest.approx(ticket.cost / 2)
    assert (await app.services.gallery.read_picture(ticket.job, 3)).startswith(b"\x89PNG")
    assert (await app.services.gallery.render_film(ticket.job))[8:12] == b"WEBP"
    assert await app.services.gallery.keyframe_steps(ticket.job) == [0, 10, 20]
    assert (await app.services.gallery.render_keyframe_grid(ticket.job, 2))[8:12] == b"WEBP"
    with pytest.raises(UserError):
        await app.services.gallery.render_keyframe_grid(ticket.job, 3)


@pytest.mark.asyncio
async def test_the_feed_shows_the_previews_and_the_end_of_a_job(workplace, until, ann, here):
    app = await workplace.house()
    worker, _ = await workplace.worker()
    worker.go.clear()
    await until(lambda: app.services.live_workers())
    async with app.feed.subscribe() as events:
        (ticket,) = await app.services.jobs.imagine("a lamp --count 1", ann, here)
        received = []
        async for event in events:
            received.append(event)
            worker.go.set()
            if isinstance(event, JobEnded):
                break
    assert received[-1] == JobEnded(ticket.job, "finished", "")
    frames = [one.frames for one in received if isinstance(one, JobProgress)]
    assert frames


async def _finish_job(app, workplace, until, ann, here, text="a lamp --seed 7 --count 2"):
    worker, _ = await workplace.worker()
    await until(lambda: app.services.live_workers())
    (ticket,) = await app.services.jobs.imagine(text, ann, here)
    await _wait_for_end(app.services, ticket.job, until)
    return worker, ticket.job


@pytest.mark.asyncio
async def test_a_variation_keeps_the_chain_of_noise_seeds(workplace, until, ann, here):
    app = await workplace.house()
    _, job = await _finish_job(app, workplace, until, ann, here)
    first = await app.services.variations.vary(job, 1, BOB, here)
    view = await _wait_for_end(app.services, first.job, until)
    assert view.task.lineage == (NoiseAncestor(seed=7, index=1, strength=VARIATION_STRENGTHS["subtle"]),)
    assert view.task.seed == first.seed != 7
    assert (view.parent_image, view.action, view.member_id) == ((job, 1), "vary", BOB.id)
    second = await app.services.job_views.load_view(
        (await app.services.variations.vary(first.job, 0, ann, here, strength=0.5)).job
    )
    assert second.task.lineage == (*view.task.lineage, NoiseAncestor(seed=first.seed, index=0, strength=0.5))
    with pytest.raises(UserError) as caught:
        await app.services.variations.vary(job, 2, ann, here)
    assert caught.value.status == 404


@pytest.mark.asyncio
async def test_a_reroll_is_the_same_recipe_with_another_seed(workplace, until, ann, here):
    app = await workplace.house()
    _, job = await _finish_job(app, workplace, until, ann, here)
    view = await app.services.job_views.load_view(job)
    ticket = await app.services.variations.reroll(job, ann, here)
    again = await app.services.job_views.load_view(ticket.job)
    assert msgspec.structs.replace(again.task, seed=7) == view.task
    assert (again.task.seed, again.prompt, again.action) == (ticket.seed, view.prompt, "reroll")


@pytest.mark.asyncio
async def test_an_upscale_is_a_job_whose_source_the_worker_can_fetch(workplace, until, ann, here):
    app = await workplace.house()
    worker, job = await _finish_job(app, workplace, until, ann, here)
    source = (await app.services.job_views.load_view(job)).pictures[1]
    await worker.bus.blobs.drop(source.sha256)
    worker.go.clear()
    ticket = await app.services.variations.upscale(job, 1, ann, here)
    assert (ticket.sampler, ticket.count) == ("lanczos", 1)
    await until(lambda: ticket.job in worker.begun)
    assert await worker.bus.get_blob(source.sha256, 10**6) == await app.services.gallery.read_picture(job, 1)
    worker.go.set()
    view = await _wait_for_end(app.services, ticket.job, until)
    assert (view.state, view.task, view.parent_image) == (
        "finished",
        UpscaleTask(source=source.sha256, factor=4),
        (job, 1),
    )
    assert view.pictures[0].width == 256
    with pytest.raises(UserError):
        await app.services.variations.reroll(ticket.job, ann, here)
    varied = await app.services.variations.vary(ticket.job, 0, ann, here)
    assert (await app.services.job_views.load_view(varied.job)).task.lineage == (
        NoiseAncestor(seed=7, index=1, strength=VARIATION_STRENGTHS["subtle"]),
    )


@pytest.mark.asyncio
async def test_the_same_key_makes_one_job_per_member(workplace, ann, here):
    app = await workplace.house()
    (one,) = await app.services.jobs.imagine("a lamp", ann, here, key="press")
    (two,) = await app.services.jobs.imagine("a lamp", ann, here, key="press")
    (other,) = await app.services.jobs.imagine("a lamp", BOB, here, key="press")
    assert one.job == two.job != other.job
    assert one.seed == two.seed


@pytest.mark.asyncio
async def test_permutations_are_admitted_together_or_not_at_all(workplace, ann, here):
    app = await workplace.house()
    tickets = await app.services.jobs.imagine("a {red, green, blue} lamp --fast", ann, here)
    assert [ticket.prompt for ticket in tickets] == [f"a {one} lamp --fast" for one in ("red", "green", "blue")]
    assert [ticket.jobs_ahead for ticket in tickets] == [0, 1, 2]
    assert tickets[0].notes[0] == format_cost(3, sum(ticket.cost for ticket in tickets))
    assert not any("in all" in note for ticket in tickets[1:] for note in ticket.notes)
    with pytest.raises(UserError) as caught:
        await app.services.jobs.imagine("{a,b,c,d,e,f,g,h} lamp --fast", ann, here)
    assert caught.value.status == 429
    assert len(await app.services.job_views.load_queue()) == 3


@pytest.mark.asyncio
async def test_options_override_flags_and_exact_pins_the_batch(workplace, ann, here):
    app = await workplace.house()
    options = {"steps": 25, "seed": 3, "guidance": 3.0, "sampler": "euler", "count": 3, "negative": "fog"}
    (ticket,) = await app.services.jobs.imagine("a::2 lamp::-1 --steps 99", ann, here, is_exact=True, **options)
    recipe = (await app.services.job_views.load_view(ticket.job)).task
    assert isinstance(recipe, Recipe)
    assert (recipe.steps, recipe.seed, recipe.guidance, recipe.sampler, recipe.count) == (25, 3, 3.0, "euler", 3)
    assert (recipe.negative, count_rows(recipe), recipe.bucket) == ("fog", 9, 16)


@pytest.mark.asyncio
async def test_only_the_owner_or_a_moderator_of_the_guild_cancels(workplace, ann, here):
    app = await workplace.house()
    (ticket,) = await app.services.jobs.imagine("a lamp", ann, here)
    for stranger in (BOB, Member("x", "X", "elsewhere", is_moderator=True)):
        with pytest.raises(UserError) as caught:
            await app.services.jobs.cancel(ticket.job, stranger)
        assert caught.value.status == 403
    await app.services.jobs.cancel(ticket.job, Member("mod", "Mod", "local", is_moderator=True))
    assert (await app.services.job_views.load_view(ticket.job)).state == "cancelled"


@pytest.mark.asyncio
async def test_unknown_jobs_and_missing_pictures_are_refused_with_404(workplace, ann, here):
    app = await workplace.house()
    (ticket,) = await app.services.jobs.imagine("a lamp", ann, here)
    nothing = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    services = app.services
    for request in (
        services.job_views.load_view(nothing),
        services.jobs.cancel(nothing, ann),
        services.variations.vary(nothing, 0, ann, here),
        app.services.deliveries.answer_destination(nothing),
        services.gallery.read_picture(ticket.job, 0),
        services.gallery.render_film(ticket.job),
        services.gallery.keyframe_steps(ticket.job),
        services.gallery.render_keyframe_grid(ticket.job, 0),
        services.variations.upscale(ticket.job, 0, ann, here),
        services.variations.reroll("' OR 1=1 --", ann, here),
    ):
        with pytest.raises(UserError) as caught:
            await request
        assert caught.value.status == 404


@pytest.mark.asyncio
async def test_recent_and_queued_jobs_are_listed_by_guild_and_destinations_are_kept(workplace, ann, here):
    app = await workplace.house()
    (one,) = await app.services.jobs.imagine("a lamp", ann, here)
    (two,) = await app.services.jobs.imagine(
        "a lamp", Member("z", "Z", "other"), Destination("discord", {"token": "t"})
    )
    assert [view.id for view in await app.services.job_views.load_recent()] == [two.job, one.job]
    assert [view.id for view in await app.services.job_views.load_recent("other", 5)] == [two.job]
    assert [view.id for view in await app.services.job_views.load_queue("local")] == [one.job]
    await app.services.deliveries.update_address(two.job, message="99")
    assert (await app.services.deliveries.answer_destination(two.job)).address == {"token": "t", "message": "99"}
    assert await app.services.deliveries.list_undelivered("discord") == [], "the job still waits"
    await app.services.jobs.cancel(two.job, Member("z", "Z", "other"))
    ((view, place),) = await app.services.deliveries.list_undelivered("discord")
    assert (view.id, place.kind) == (two.job, "discord")
    await app.services.deliveries.mark_delivered(two.job)
    assert await app.services.deliveries.list_undelivered("discord") == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_models_are_remembered_when_their_worker_is_gone(workplace, until, ann, here):
    async with workplace.visit() as app:
        worker, task = await workplace.worker()

        async def has_models():
            return await app.store.query(queries.list_models)

        await until(has_models)
        await worker.vanish(task)
    app = await workplace.house()
    await until(lambda: not app.services.live_workers())
    assert [model.steps for model in app.services.catalog.list_profiles()] == [40]
    (ticket,) = await app.services.jobs.imagine("a lamp", ann, here)
    assert (ticket.steps, ticket.has_worker) == (40, False)


@pytest.mark.asyncio
async def test_a_refusal_by_quota_says_when_a_place_frees(workplace, until, ann, here):
    app = await workplace.house()
    worker, _ = await workplace.worker()
    worker.go.clear()
    await until(lambda: app.services.live_workers())
    for _ in range(10):
        await app.services.jobs.imagine("a lamp --fast", ann, here)
    await until(lambda: len(worker.begun) == 3)
    with pytest.raises(UserError) as caught:
        await app.services.jobs.imagine("a lamp --fast", ann, here)
    assert caught.value.status == 429
    assert "3 running and 7 waiting" in caught.value.sentence
    assert "A place frees in about" in caught.value.sentence


@pytest.mark.asyncio
async def test_while_nothing_runs_the_first_waiting_job_decides_when_a_place_frees(workplace, until, ann, here):
    app = await workplace.house()
    for _ in range(10):
        await app.services.jobs.imagine("a lamp --fast", ann, here)
    with pytest.raises(UserError, match="A place frees when a worker comes"):
        await app.services.jobs.imagine("a lamp --fast", ann, here)
    worker = await workplace.hand("hand")
    worker.rows = 0
    await worker.announce()
    await until(lambda: app.services.live_workers())
    with pytest.raises(UserError, match="A place frees in about"):
        await app.services.jobs.imagine("a lamp --fast", ann, here)


@pytest.mark.asyncio
async def test_a_job_from_an_old_picture_uses_the_current_weights_and_says_so(workplace, until, ann, here):
    app = await workplace.house()
    worker, job = await _finish_job(app, workplace, until, ann, here)
    assert (await app.services.variations.reroll(job, ann, here)).notes == ()
    worker.revision = "2"
    await worker.announce()
    await until(lambda: app.services.catalog.list_profiles()[0].revision == "2")
    for ticket in (
        await app.services.variations.reroll(job, ann, here),
        await app.services.variations.vary(job, 0, ann, here),
    ):
        assert ticket.notes == ("Made with a newer version of embedded: it will differ.",)
        assert (await app.services.job_views.load_view(ticket.job)).task.revision == "2"


def test_a_model_that_no_worker_has_ready_is_not_reported_as_no_worker_online():
    profile = CatalogEntry(SHIPPED_MODEL, "default", False)
    assert offline_note(profile, any_worker=True).startswith("No worker had this model ready yet: this uses the last")
    assert offline_note(profile, any_worker=False).startswith("No worker was online yet: this uses the last")


def test_the_ninth_ancestor_pushes_the_oldest_out():
    recipe = Recipe(
        concepts=(Concept(text="a"),), model="m", sampler="ddim", steps=2, seed=0, guidance=2.0, width=64, height=64,
        dtype="float32",
    )  # fmt: skip
    for seed in range(1, 11):
        recipe = vary_recipe(recipe, 0, 0.3, seed)
    assert [ancestor.seed for ancestor in recipe.lineage] == list(range(2, 10))
    assert recipe.seed == 10


def test_exact_mode_takes_the_next_power_of_two():
    recipe = Recipe(
        concepts=(Concept(text="a"),), model="m", sampler="ddim", steps=2, seed=0, guidance=2.0, width=64, height=64,
        dtype="float32", count=4,
    )  # fmt: skip
    assert pin_batch_shape(recipe).bucket == 8
    assert pin_batch_shape(msgspec.structs.replace(recipe, count=3)).bucket == 8
    assert pin_batch_shape(msgspec.structs.replace(recipe, count=1, guidance=1.0)).bucket == 1
    assert pin_batch_shape(msgspec.structs.replace(recipe, concepts=(Concept(text="a"),) * 8)).bucket == 32


def test_the_cost_of_an_upscale_depends_on_the_size_of_its_source():
    by_gan, by_lanczos = largest_upscale("0" * 64, 256, 256), largest_upscale("0" * 64, 256, 256, "lanczos")
    assert upscale_cost(by_lanczos, 256, 256) == pytest.approx(0.05 * (1 + 1024**2 / 1e6))
    more = upscale_cost(by_gan, 256, 256, 10_000) - upscale_cost(by_lanczos, 256, 256)
    assert more == pytest.approx(10 * 256**2 / 1e6)


@pytest.mark.asyncio
async def test_finished_pictures_may_be_a_multiple_of_the_recipe_size(workplace, until, ann, here):
    app = await workplace.house()
    worker, _ = await workplace.worker()
    worker.enlargement = 4
    await until(lambda: app.services.live_workers())
    (ticket,) = await app.services.jobs.imagine("a lamp --seed 7", ann, here)
    view = await _wait_for_end(app.services, ticket.job, until)
    assert [(one.width, one.height) for one in view.pictures] == [(256, 256)] * 4
    assert (view.enlargement, view.task.width, view.task.height) == (4, 64, 64)
    composed = await asyncio.to_thread(grid.compose, await app.services.gallery.read_all_for_members(ticket.job))
    with Image.open(io.BytesIO(composed)) as sheet:
        assert sheet.size == (512 + GAP, 512 + GAP)
    with Image.open(io.BytesIO(await app.services.gallery.render_film(ticket.job))) as film:
        assert film.size == (512 + GAP, 512 + GAP)
    varied = await app.services.variations.vary(ticket.job, 0, ann, here)
    recipe = (await app.services.job_views.load_view(varied.job)).task
    assert (recipe.width, recipe.height) == (64, 64)


@pytest.mark.asyncio
async def test_an_upscale_names_the_method_that_was_used(workplace, until, ann, here):
    app = await workplace.house()
    worker, job = await _finish_job(app, workplace, until, ann, here)
    worker.enlarge_ms = 10_000.0
    await worker.announce()
    await until(lambda: any(one.enlarge_ms for one in app.services.live_workers().values()))
    for method in ("gan", "lanczos"):
        worker.method = method
        ticket = await app.services.variations.upscale(job, 0, ann, here)
        assert ticket.sampler == "gan"
        assert (await _wait_for_end(app.services, ticket.job, until)).task.method == method


def test_an_upscale_takes_the_largest_factor_that_fits():
    assert largest_upscale("0" * 64, 1024, 512).factor == 4
    assert largest_upscale("0" * 64, 1365, 512).factor == 3
    assert largest_upscale("0" * 64, 2048, 512).factor == 2
    assert upscale_notes(largest_upscale("0" * 64, 1024, 512), 1024, 512) == ()
    notes = upscale_notes(largest_upscale("0" * 64, 2048, 512), 2048, 512)
    assert notes == ("×4 would be 8192 pixels a side, and at most 4096 fit: it becomes ×2.",)
    with pytest.raises(UserError):
        largest_upscale("0" * 64, 2049, 512)


@pytest.mark.asyncio
async def test_a_member_whose_id_is_too_long_is_refused(workplace, here):
    app = await workplace.house()
    with pytest.raises(UserError) as caught:
        await app.services.jobs.imagine("a lamp", Member("x" * 65, "X", "local"), here)
    assert caught.value.status == 400
    assert await app.services.job_views.load_recent() == []


@pytest.mark.asyncio
async def test_an_error_inside_the_running_bot_is_raised_unchanged(workplace):
    with pytest.raises(UserError, match="the port is taken"):
        async with workplace.visit():
            raise UserError("the port is taken")
