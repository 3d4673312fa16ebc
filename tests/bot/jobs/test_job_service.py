"""The job service from a prompt to a picture, over a real broker and a real store."""

from __future__ import annotations

import asyncio
import io
import time

import msgspec
import pytest
from PIL import Image

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.domain.events import JobEnded, JobProgress
from bot.domain.texts import format_cost
from bot.jobs.costs import largest_upscale, upscale_cost, upscale_notes
from bot.jobs.model_catalog import SHIPPED_MODEL, CatalogEntry
from bot.jobs.recipe import offline_note, pin_batch_shape, vary_recipe
from bot.jobs.variations import VARIATION_STRENGTHS
from bot.pictures import grid
from bot.pictures.grid import GAP
from bot.store.jobs import queries
from engine.contract import Concept, NoiseAncestor, Recipe, UpscaleTask, count_rows

BOB = Member("local:bob", "Bob", "local")


async def _wait_for_end(services, job, wait_until):
    async def is_over():
        return (await services.job_views.load_view(job)).state in ("finished", "failed", "cancelled")

    await wait_until(is_over)
    return await services.job_views.load_view(job)


@pytest.mark.asyncio
async def test_a_prompt_becomes_pictures_and_a_film(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("terrier, looking up --seed 7", ann, destination)
    assert accepted.has_worker
    assert (accepted.seed, accepted.steps, accepted.sampler, accepted.count) == (7, 40, "ddim", 4)
    view = await _wait_for_end(app.services, accepted.job, wait_until)
    assert (view.state, view.seconds, view.ms_per_step) == ("finished", 1.5, 2.0)
    assert [picture.index for picture in view.pictures] == [0, 1, 2, 3]
    assert view.ladder_images == (0, 1, 2, 3)
    assert view.cost == pytest.approx(accepted.cost / 2)
    assert (await app.services.gallery.read_picture(accepted.job, 3)).startswith(b"\x89PNG")
    assert (await app.services.gallery.render_film(accepted.job))[8:12] == b"WEBP"
    assert await app.services.gallery.keyframe_steps(accepted.job) == [0, 10, 20]
    assert (await app.services.gallery.render_keyframe_grid(accepted.job, 2))[8:12] == b"WEBP"
    with pytest.raises(UserError):
        await app.services.gallery.render_keyframe_grid(accepted.job, 3)


@pytest.mark.asyncio
async def test_the_feed_shows_the_previews_and_the_end_of_a_job(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    await wait_until(lambda: app.services.live_workers())
    async with app.feed.subscribe() as events:
        (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)
        received_events = []
        async for event in events:
            received_events.append(event)
            worker.run_gate.set()
            if isinstance(event, JobEnded):
                break
    assert received_events[-1] == JobEnded(accepted.job, "finished", "")
    frames = [one.frames for one in received_events if isinstance(one, JobProgress)]
    assert frames


async def _finish_job(app, harness, wait_until, ann, destination, text="a lamp --seed 7 --count 2"):
    worker, _ = await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine(text, ann, destination)
    await _wait_for_end(app.services, accepted.job, wait_until)
    return worker, accepted.job


@pytest.mark.asyncio
async def test_a_variation_keeps_the_chain_of_noise_seeds(harness, wait_until, ann, destination):
    app = await harness.open_app()
    _, job = await _finish_job(app, harness, wait_until, ann, destination)
    first = await app.services.variations.vary(job, 1, BOB, destination)
    view = await _wait_for_end(app.services, first.job, wait_until)
    assert view.task.lineage == (NoiseAncestor(seed=7, index=1, strength=VARIATION_STRENGTHS["subtle"]),)
    assert view.task.seed == first.seed != 7
    assert (view.parent_image, view.action, view.member_id) == ((job, 1), "vary", BOB.id)
    second = await app.services.job_views.load_view(
        (await app.services.variations.vary(first.job, 0, ann, destination, strength=0.5)).job
    )
    assert second.task.lineage == (*view.task.lineage, NoiseAncestor(seed=first.seed, index=0, strength=0.5))
    with pytest.raises(UserError) as error:
        await app.services.variations.vary(job, 2, ann, destination)
    assert error.value.status == 404


@pytest.mark.asyncio
async def test_a_reroll_is_the_same_recipe_with_another_seed(harness, wait_until, ann, destination):
    app = await harness.open_app()
    _, job = await _finish_job(app, harness, wait_until, ann, destination)
    view = await app.services.job_views.load_view(job)
    accepted = await app.services.variations.reroll(job, ann, destination)
    reloaded_view = await app.services.job_views.load_view(accepted.job)
    assert msgspec.structs.replace(reloaded_view.task, seed=7) == view.task
    assert (reloaded_view.task.seed, reloaded_view.prompt, reloaded_view.action) == (
        accepted.seed,
        view.prompt,
        "reroll",
    )


@pytest.mark.asyncio
async def test_an_upscale_is_a_job_whose_source_the_worker_can_fetch(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, job = await _finish_job(app, harness, wait_until, ann, destination)
    source = (await app.services.job_views.load_view(job)).pictures[1]
    await worker.bus.blobs.drop(source.sha256)
    worker.run_gate.clear()
    accepted = await app.services.variations.upscale(job, 1, ann, destination)
    assert (accepted.sampler, accepted.count) == ("lanczos", 1)
    await wait_until(lambda: accepted.job in worker.started_jobs)
    assert await worker.bus.get_blob(source.sha256, 10**6) == await app.services.gallery.read_picture(job, 1)
    worker.run_gate.set()
    view = await _wait_for_end(app.services, accepted.job, wait_until)
    assert (view.state, view.task, view.parent_image) == (
        "finished",
        UpscaleTask(source=source.sha256, factor=4),
        (job, 1),
    )
    assert view.pictures[0].width == 256
    with pytest.raises(UserError):
        await app.services.variations.reroll(accepted.job, ann, destination)
    variation = await app.services.variations.vary(accepted.job, 0, ann, destination)
    assert (await app.services.job_views.load_view(variation.job)).task.lineage == (
        NoiseAncestor(seed=7, index=1, strength=VARIATION_STRENGTHS["subtle"]),
    )


@pytest.mark.asyncio
async def test_the_same_key_makes_one_job_per_member(harness, ann, destination):
    app = await harness.open_app()
    (one,) = await app.services.jobs.imagine("a lamp", ann, destination, key="press")
    (second,) = await app.services.jobs.imagine("a lamp", ann, destination, key="press")
    (other,) = await app.services.jobs.imagine("a lamp", BOB, destination, key="press")
    assert one.job == second.job != other.job
    assert one.seed == second.seed


@pytest.mark.asyncio
async def test_permutations_are_admitted_together_or_not_at_all(harness, ann, destination):
    app = await harness.open_app()
    accepted_jobs = await app.services.jobs.imagine("a {red, green, blue} lamp --fast", ann, destination)
    assert [accepted.prompt for accepted in accepted_jobs] == [
        f"a {one} lamp --fast" for one in ("red", "green", "blue")
    ]
    assert [accepted.jobs_ahead for accepted in accepted_jobs] == [0, 1, 2]
    assert accepted_jobs[0].notes[0] == format_cost(3, sum(accepted.cost for accepted in accepted_jobs))
    assert not any("in all" in note for accepted in accepted_jobs[1:] for note in accepted.notes)
    with pytest.raises(UserError) as error:
        await app.services.jobs.imagine("{a,b,c,d,e,f,g,h} lamp --fast", ann, destination)
    assert error.value.status == 429
    assert len(await app.services.job_views.load_queue()) == 3


@pytest.mark.asyncio
async def test_options_override_flags_and_exact_pins_the_batch(harness, ann, destination):
    app = await harness.open_app()
    options = {"steps": 25, "seed": 3, "guidance": 3.0, "sampler": "euler", "count": 3, "negative": "fog"}
    (accepted,) = await app.services.jobs.imagine(
        "a::2 lamp::-1 --steps 99", ann, destination, is_exact=True, **options
    )
    recipe = (await app.services.job_views.load_view(accepted.job)).task
    assert isinstance(recipe, Recipe)
    assert (recipe.steps, recipe.seed, recipe.guidance, recipe.sampler, recipe.count) == (25, 3, 3.0, "euler", 3)
    assert (recipe.negative, count_rows(recipe), recipe.bucket) == ("fog", 9, 16)


@pytest.mark.asyncio
async def test_only_the_owner_or_a_moderator_of_the_guild_cancels(harness, ann, destination):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    for other_member in (BOB, Member("x", "X", "elsewhere", is_moderator=True)):
        with pytest.raises(UserError) as error:
            await app.services.job_control.cancel(accepted.job, other_member)
        assert error.value.status == 403
    await app.services.job_control.cancel(accepted.job, Member("mod", "Mod", "local", is_moderator=True))
    assert (await app.services.job_views.load_view(accepted.job)).state == "cancelled"


@pytest.mark.asyncio
async def test_unknown_jobs_and_missing_pictures_are_refused_with_404(harness, ann, destination):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    unknown_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    services = app.services
    for request in (
        services.job_views.load_view(unknown_id),
        services.job_control.cancel(unknown_id, ann),
        services.variations.vary(unknown_id, 0, ann, destination),
        app.services.deliveries.answer_destination(unknown_id),
        services.gallery.read_picture(accepted.job, 0),
        services.gallery.render_film(accepted.job),
        services.gallery.keyframe_steps(accepted.job),
        services.gallery.render_keyframe_grid(accepted.job, 0),
        services.variations.upscale(accepted.job, 0, ann, destination),
        services.variations.reroll("' OR 1=1 --", ann, destination),
    ):
        with pytest.raises(UserError) as error:
            await request
        assert error.value.status == 404


@pytest.mark.asyncio
@pytest.mark.parametrize("starts_before_layout", [True, False])
async def test_the_queue_shows_a_job_that_starts_while_the_queue_is_read(
    harness, ann, destination, monkeypatch, starts_before_layout
):
    app = await harness.open_app()
    (waiting,) = await app.services.jobs.imagine("a lamp", ann, destination)
    read_layout = app.services.job_views.forecast.get_layout

    async def start_and_read_layout(**options):
        if starts_before_layout:
            await app.store.start_job(waiting.job, 1, "painter", 0, time.time())
            return await read_layout(**options)
        layout = await read_layout(**options)
        await app.store.start_job(waiting.job, 1, "painter", 0, time.time())
        return layout

    monkeypatch.setattr(app.services.job_views.forecast, "get_layout", start_and_read_layout)
    (view,) = await app.services.job_views.load_queue("local")
    assert (view.id, view.state) == (waiting.job, "running")


@pytest.mark.asyncio
async def test_recent_and_queued_jobs_are_listed_by_guild_and_destinations_are_kept(harness, ann, destination):
    app = await harness.open_app()
    (one,) = await app.services.jobs.imagine("a lamp", ann, destination)
    (second,) = await app.services.jobs.imagine(
        "a lamp", Member("z", "Z", "other"), Destination("discord", {"token": "t"})
    )
    assert [view.id for view in await app.services.job_views.load_recent()] == [second.job, one.job]
    assert [view.id for view in await app.services.job_views.load_recent("other", 5)] == [second.job]
    assert [view.id for view in await app.services.job_views.load_queue("local")] == [one.job]
    await app.services.deliveries.update_address(second.job, message="99")
    assert (await app.services.deliveries.answer_destination(second.job)).address == {"token": "t", "message": "99"}
    assert await app.services.deliveries.list_undelivered("discord") == [], "the job still waits"
    await app.services.job_control.cancel(second.job, Member("z", "Z", "other"))
    ((view, undelivered_to),) = await app.services.deliveries.list_undelivered("discord")
    assert (view.id, undelivered_to.kind) == (second.job, "discord")
    await app.services.deliveries.mark_delivered(second.job)
    assert await app.services.deliveries.list_undelivered("discord") == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_models_are_remembered_when_their_worker_is_gone(harness, wait_until, ann, destination):
    async with harness.open_temporary_app() as app:
        worker, task = await harness.start_worker()

        async def has_models():
            return await app.store.query(queries.list_models)

        await wait_until(has_models)
        await worker.vanish(task)
    app = await harness.open_app()
    await wait_until(lambda: not app.services.live_workers())
    assert [model.steps for model in app.services.catalog.list_profiles()] == [40]
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    assert (accepted.steps, accepted.has_worker) == (40, False)


@pytest.mark.asyncio
async def test_a_refusal_by_quota_says_when_a_place_frees(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    await wait_until(lambda: app.services.live_workers())
    for _ in range(10):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    await wait_until(lambda: len(worker.started_jobs) == 3)
    with pytest.raises(UserError) as error:
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    assert error.value.status == 429
    assert "3 running and 7 waiting" in error.value.sentence
    assert "You can submit again in about" in error.value.sentence


@pytest.mark.asyncio
async def test_a_refusal_by_quota_takes_one_transaction(harness, monkeypatch, ann, destination):
    app = await harness.open_app()
    for _ in range(10):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    calls = []
    admit_jobs = app.store.admit_jobs
    monkeypatch.setattr(app.store, "admit_jobs", lambda *args: (calls.append(args), admit_jobs(*args))[1])
    with pytest.raises(UserError, match="10 waiting"):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    assert len(calls) == 1


@pytest.mark.asyncio
async def test_while_nothing_runs_the_first_waiting_job_decides_when_a_place_frees(
    harness, wait_until, ann, destination
):
    app = await harness.open_app()
    for _ in range(10):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    with pytest.raises(UserError, match="You can submit again when a worker comes"):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)
    worker = await harness.make_worker("hand")
    worker.rows = 0
    await worker.announce()
    await wait_until(lambda: app.services.live_workers())
    with pytest.raises(UserError, match="You can submit again in about"):
        await app.services.jobs.imagine("a lamp --fast", ann, destination)


@pytest.mark.asyncio
async def test_a_job_from_an_old_picture_uses_the_current_weights_and_says_so(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, job = await _finish_job(app, harness, wait_until, ann, destination)
    assert (await app.services.variations.reroll(job, ann, destination)).notes == ()
    worker.revision = "2"
    await worker.announce()
    await wait_until(lambda: app.services.catalog.list_profiles()[0].revision == "2")
    for accepted in (
        await app.services.variations.reroll(job, ann, destination),
        await app.services.variations.vary(job, 0, ann, destination),
    ):
        assert accepted.notes == ("Made with a newer version of embedded: it will differ.",)
        assert (await app.services.job_views.load_view(accepted.job)).task.revision == "2"


def test_a_model_that_no_worker_has_ready_is_not_reported_as_no_worker_online():
    profile = CatalogEntry(SHIPPED_MODEL, "default", False)
    assert offline_note(profile, any_worker=True).startswith("No worker had this model ready yet: this uses the last")
    assert offline_note(profile, any_worker=False).startswith("No worker was online yet: this uses the last")


def test_the_ninth_ancestor_pushes_the_oldest_out():
    recipe = Recipe(
        concepts=(Concept(text="a"),),
        model="m",
        sampler="ddim",
        steps=2,
        seed=0,
        guidance=2.0,
        width=64,
        height=64,
        dtype="float32",
    )
    for seed in range(1, 11):
        recipe = vary_recipe(recipe, 0, 0.3, seed)
    assert [ancestor.seed for ancestor in recipe.lineage] == list(range(2, 10))
    assert recipe.seed == 10


def test_exact_mode_takes_the_next_power_of_two():
    recipe = Recipe(
        concepts=(Concept(text="a"),),
        model="m",
        sampler="ddim",
        steps=2,
        seed=0,
        guidance=2.0,
        width=64,
        height=64,
        dtype="float32",
        count=4,
    )
    assert pin_batch_shape(recipe).bucket == 8
    assert pin_batch_shape(msgspec.structs.replace(recipe, count=3)).bucket == 8
    assert pin_batch_shape(msgspec.structs.replace(recipe, count=1, guidance=1.0)).bucket == 1
    assert pin_batch_shape(msgspec.structs.replace(recipe, concepts=(Concept(text="a"),) * 8)).bucket == 32


def test_the_cost_of_an_upscale_depends_on_the_size_of_its_source():
    by_gan = largest_upscale("0" * 64, 256, 256)
    by_lanczos = largest_upscale("0" * 64, 256, 256, "lanczos")
    assert upscale_cost(by_lanczos, 256, 256) == pytest.approx(0.05 * (1 + 1024**2 / 1e6))
    extra_cost = upscale_cost(by_gan, 256, 256, 10_000) - upscale_cost(by_lanczos, 256, 256)
    assert extra_cost == pytest.approx(10 * 256**2 / 1e6)


@pytest.mark.asyncio
async def test_finished_pictures_may_be_a_multiple_of_the_recipe_size(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.scale = 4
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("a lamp --seed 7", ann, destination)
    view = await _wait_for_end(app.services, accepted.job, wait_until)
    assert [(one.width, one.height) for one in view.pictures] == [(256, 256)] * 4
    assert (view.enlargement, view.task.width, view.task.height) == (4, 64, 64)
    grid_picture = await asyncio.to_thread(grid.compose, await app.services.gallery.read_all_for_members(accepted.job))
    with Image.open(io.BytesIO(grid_picture)) as sheet:
        assert sheet.size == (512 + GAP, 512 + GAP)
    with Image.open(io.BytesIO(await app.services.gallery.render_film(accepted.job))) as film:
        assert film.size == (512 + GAP, 512 + GAP)
    variation = await app.services.variations.vary(accepted.job, 0, ann, destination)
    recipe = (await app.services.job_views.load_view(variation.job)).task
    assert (recipe.width, recipe.height) == (64, 64)


@pytest.mark.asyncio
async def test_an_upscale_names_the_method_that_was_used(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, job = await _finish_job(app, harness, wait_until, ann, destination)
    worker.enlarge_ms = 10_000.0
    await worker.announce()
    await wait_until(lambda: any(one.upscale_ms for one in app.services.live_workers().values()))
    for method in ("gan", "lanczos"):
        worker.upscale_method = method
        accepted = await app.services.variations.upscale(job, 0, ann, destination)
        assert accepted.sampler == "gan"
        assert (await _wait_for_end(app.services, accepted.job, wait_until)).task.method == method


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
async def test_a_member_whose_id_is_too_long_is_refused(harness, destination):
    app = await harness.open_app()
    with pytest.raises(UserError) as error:
        await app.services.jobs.imagine("a lamp", Member("x" * 65, "X", "local"), destination)
    assert error.value.status == 400
    assert await app.services.job_views.load_recent() == []


@pytest.mark.asyncio
async def test_an_error_inside_the_running_bot_is_raised_unchanged(harness):
    with pytest.raises(UserError, match="the port is taken"):
        async with harness.open_temporary_app():
            raise UserError("the port is taken")
