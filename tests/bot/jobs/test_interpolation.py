"""Interpolation between two prompts: its grammar, its jobs over a real broker and store, and its film."""

from __future__ import annotations

import io

import msgspec
import pytest
from PIL import Image
from rich.console import Console

from bot.cli.imagine import local_engine
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.beginnings import single_image
from bot.jobs.recipe import (
    can_interpolate,
    interpolate_images,
    interpolation_recipes,
    keep_conditioning,
    pin_batch_shape,
    vary_recipe,
)
from bot.pictures.animation import HOLD_MS
from bot.pictures.ladder_film import FRAMES_BETWEEN, animate_walk, render_interpolation_film
from bot.policy.rules.explanations import member_texts
from bot.prompt import parse
from bot.prompt.capability_check import check_sampler
from bot.prompt.flags import prompt_title
from bot.store import NewJob
from bot.store.jobs import queries
from engine.contract import PIPELINE_SAMPLERS, Concept, Interpolation, NoiseAncestor, Recipe, recipe_for_image
from shared.app_harness import make_profile
from shared.picture_files import make_png

BOB = Member("local:bob", "Bob", "local")
FOX = Recipe(
    concepts=(Concept("a fox"),),
    model="m",
    sampler="ddim",
    steps=9,
    seed=5,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
)


def test_an_interpolation_is_requested_by_a_flag_with_a_prompt():
    (one,) = parse("a fox, blue --walk a terrier, red --frames 8 --no fog", None).prompts
    assert (one.words, one.end_prompt, one.frames, one.negative) == ("a fox, blue", "a terrier, red", 8, "fog")
    assert parse("a fox", None, options={"walk": "a cat"}).prompts[0].frames == 12
    assert prompt_title("a (fox:1.2) --walk a cat --frames 8 --no fog") == "a fox → a cat (no fog)"
    assert "changes nothing" in parse("a fox --walk a cat --count 2", None).notes[0]
    assert "alone it changes nothing" in parse("a fox --frames 8", None).notes[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a:: b::2 --walk c", "from one text to another"),
        ("a --walk b:: c", "from one text to another"),
        ("a --walk", "needs a value"),
        ("--walk b", "begins with words|empty"),
        ("a --walk b --frames 3", "4 to 16"),
        ("a --walk b --frames 17", "4 to 16"),
        ("a --walk b --repeat 4", "makes 12 jobs"),
    ],
)
def test_an_invalid_interpolation_is_refused_in_one_sentence(text, reason):
    with pytest.raises(UserError, match=reason):
        parse(text, None, allow_empty=text.startswith("--"))


@pytest.mark.parametrize("sampler", sorted(PIPELINE_SAMPLERS))
def test_a_whole_pipeline_draws_no_interpolation(sampler):
    part = msgspec.structs.replace(interpolation_recipes(FOX, "a cat", 4)[0], sampler=sampler)
    with pytest.raises(UserError, match="cannot do --walk"):
        check_sampler(part)


def film_frames(frames: int) -> list[tuple[int, int]]:
    """The shade and the milliseconds of each frame."""
    pictures = [make_png(32, 32, round(200 * frame_index / (frames - 1))) for frame_index in range(frames)]
    film = Image.open(io.BytesIO(render_interpolation_film(pictures)))
    frames_seen = []
    for frame_index in range(getattr(film, "n_frames", 1)):
        film.seek(frame_index)
        film.load()
        frames_seen.append((film.convert("L").getpixel((9, 9)), film.info["duration"]))
    return frames_seen


def test_the_film_goes_forth_and_back_through_every_picture():
    frames = film_frames(5)
    shades = [shade for shade, _ in frames]
    assert len(frames) == 2 * 4 * FRAMES_BETWEEN + 1
    rising_shades = [200 * step / 12 for step in range(13)]
    assert shades == pytest.approx([*rising_shades, *rising_shades[-2::-1]], abs=3)
    assert frames[4 * FRAMES_BETWEEN][1] >= HOLD_MS <= frames[-1][1]
    assert animate_walk([make_png(64, 32), make_png(64, 32)]).size == (512, 256)
    with pytest.raises(ValueError, match="two pictures"):
        render_interpolation_film([make_png(8, 8)])


async def wait_for_end(app, jobs, wait_until):
    async def are_done() -> bool:
        return all(
            [(await app.services.job_views.load_view(job)).state not in ("queued", "sent", "running") for job in jobs]
        )

    await wait_until(are_done)
    return [await app.services.job_views.load_view(job) for job in jobs]


@pytest.mark.asyncio
async def test_the_jobs_of_an_interpolation_differ_only_in_place_and_share_one_film(
    harness, wait_until, ann, destination
):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    services = app.services
    accepted_jobs = await services.jobs.imagine("a fox --walk a cat --frames 6 --steps 20 --seed 7", ann, destination)
    assert len(accepted_jobs) == 2
    views = await wait_for_end(app, [one.job for one in accepted_jobs], wait_until)
    assert [view.task.interpolation for view in views] == [Interpolation("a cat", 0, 6), Interpolation("a cat", 4, 6)]
    assert [(view.task.count, view.task.seed) for view in views] == [(4, 7), (2, 7)]
    assert sum(view.ends_interpolation for view in views) == 1, "one of the jobs has the film"
    films = [await services.gallery.render_interpolation_film(view.id) for view in views]
    assert films[0] == films[1]
    assert [part.id for part in await app.store.query(queries.list_parts, views[1].id)] == [view.id for view in views]

    (other,) = await services.jobs.imagine("a fox --steps 20", ann, destination)
    (view,) = await wait_for_end(app, [other.job], wait_until)
    assert not view.ends_interpolation
    with pytest.raises(UserError, match="This job is no interpolation"):
        await services.gallery.render_interpolation_film(view.id)
    with pytest.raises(UserError, match="A remix cannot start an interpolation"):
        await services.variations.remix(view.id, 0, "a dog --walk a cat", ann, destination)

    variation = await services.variations.vary(views[1].id, 0, BOB, destination)
    recipe = (await services.job_views.load_view(variation.job)).task
    assert (recipe.interpolation, recipe.mixed, recipe.lineage) == (None, True, (NoiseAncestor(7, 0, 0.2),))
    await wait_for_end(app, [variation.job], wait_until)
    for job in (views[1].id, variation.job):
        for strength in (None, 0.6):
            (dog,) = await services.variations.remix(job, 0, "dog:: cat::-0.5", BOB, destination, strength=strength)
            recipe = (await services.job_views.load_view(dog.job)).task
            assert not recipe.mixed, "nobody typed --mix"
    (two_prompts,) = await services.variations.remix(variation.job, 0, "dog:: cat:: --mix", BOB, destination)
    assert (await services.job_views.load_view(two_prompts.job)).task.mixed
    await wait_for_end(app, [two_prompts.job], wait_until)
    (mixed_prompts,) = await services.variations.remix(two_prompts.job, 0, "dog:: rat::", BOB, destination)
    assert (await services.job_views.load_view(mixed_prompts.job)).task.mixed, "--mix was typed before"
    (single,) = await services.variations.remix(views[1].id, 1, "a dog", BOB, destination)
    recipe = (await services.job_views.load_view(single.job)).task
    assert (recipe.count, recipe.seed, single.notes) == (1, 7, ())
    (remixes,) = await services.variations.remix(views[0].id, None, "a dog", BOB, destination)
    assert "only the first keeps the noise of the interpolation" in remixes.notes[0]
    words = await services.edits.branch(views[1].id, 0, 10, BOB, destination, text="dog:: cat::-0.5")
    assert not (await services.job_views.load_view(words.job)).task.mixed
    near_branch = await services.edits.branch(views[1].id, 0, 10, BOB, destination, steps=40)
    recipe = (await services.job_views.load_view(near_branch.job)).task
    assert [one.text for one in recipe.concepts] == ["a fox", "a cat"]
    assert (recipe.interpolation, recipe.mixed, recipe.seed) == (None, True, 7)


@pytest.mark.asyncio
async def test_an_interpolation_is_deleted_whole_and_the_word_filter_reads_its_prompts(
    harness, wait_until, ann, destination
):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    accepted_jobs = await app.services.jobs.imagine("a fox --walk a cat --frames 5 --steps 20", ann, destination)
    await wait_for_end(app, [one.job for one in accepted_jobs], wait_until)
    deletion = await app.services.moderation.delete_pictures(accepted_jobs[1].job, ann)
    assert set(deletion.deliveries) == {one.job for one in accepted_jobs}
    with pytest.raises(UserError):
        await app.services.job_views.load_view(accepted_jobs[0].job)
    new_job = NewJob(
        id="0" * 26,
        action="imagine",
        prompt="p",
        notes=(),
        task=interpolation_recipes(FOX, "a gory cat", 4)[0],
        member=ann,
        destination=destination,
        pool="default",
        model="m",
        cost=1.0,
        created=1.0,
        deadline=2.0,
    )
    assert "a gory cat" in member_texts(new_job.prompt, new_job.task)


@pytest.mark.asyncio
async def test_the_same_interpolation_twice_is_two_interpolations(harness, ann, destination):
    app = await harness.open_app()
    accepted_jobs = await app.services.jobs.imagine(
        "a fox --walk a cat --frames 6 --seed 7 --repeat 2", ann, destination
    )
    jobs = [one.job for one in accepted_jobs]
    for frame_index, job in enumerate(jobs):
        part_ids = [part.id for part in await app.store.query(queries.list_parts, job)]
        assert part_ids == jobs[:2] if frame_index < 2 else part_ids == jobs[2:]


@pytest.mark.asyncio
async def test_an_interpolation_in_a_whole_pipeline_is_refused_before_it_costs_anything(
    harness, wait_until, ann, destination, monkeypatch
):
    profile = msgspec.structs.replace(make_profile(), samplers=("ddim", "heun"))
    monkeypatch.setattr("shared.app_harness.make_profile", lambda *_: profile)
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    with pytest.raises(UserError, match="cannot do --walk"):
        await app.services.jobs.imagine("a fox --walk a cat --sampler heun", ann, destination)
    with ProgressDisplay(Console(quiet=True), 1) as screen, pytest.raises(UserError, match="cannot do --walk"):
        local_engine._build_recipes("a fox --walk a cat --sampler heun", {}, profile, screen, None, None)


@pytest.mark.asyncio
async def test_an_unfinished_interpolation_has_no_film_yet(harness, wait_until, ann, destination):
    app = await harness.open_app()
    accepted_jobs = await app.services.jobs.imagine("a fox --walk a cat", ann, destination)
    assert len(accepted_jobs) == 3
    for accepted in accepted_jobs:
        with pytest.raises(UserError, match="still running"):
            await app.services.gallery.render_interpolation_film(accepted.job)


def test_a_frame_of_an_interpolation_becomes_a_plain_recipe_for_later_jobs():
    recipe = FOX
    parts = interpolation_recipes(recipe, "a cat", 9)
    assert [part.count for part in parts] == [4, 4, 1]
    remaining_text = keep_conditioning(parts[1], 0)
    assert (remaining_text.interpolation, remaining_text.mixed, remaining_text.seed) == (None, True, recipe.seed)
    assert [one.weight for one in remaining_text.concepts] == [0.5, 0.5]
    assert single_image(parts[1], 3).seed == recipe.seed
    assert vary_recipe(parts[0], 3, 0.2, 1).lineage[-1] == NoiseAncestor(recipe.seed, 0, 0.2)
    assert keep_conditioning(parts[2], 0).concepts == (Concept("a cat"),)
    assert pin_batch_shape(parts[0]).bucket == pin_batch_shape(recipe).bucket


def test_no_interpolation_goes_beyond_the_last_seed():
    grid = msgspec.structs.replace(FOX, count=3, seed=2**32 - 3)
    assert can_interpolate(grid)
    for part in interpolate_images(grid):
        assert msgspec.convert(msgspec.to_builtins(part), Recipe) == part
    assert not can_interpolate(msgspec.structs.replace(grid, seed=2**32 - 2))


@pytest.mark.asyncio
async def test_an_interpolation_between_pictures_goes_through_each(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    services = app.services
    (accepted,) = await services.jobs.imagine("a fox --count 3 --seed 7 --steps 20", ann, destination)
    with pytest.raises(UserError, match="needs several finished pictures"):
        await services.variations.interpolate_pictures(accepted.job, BOB, destination)
    (grid,) = await wait_for_end(app, [accepted.job], wait_until)
    (last,) = await services.jobs.imagine("a fox --count 2 --seed 4294967295 --steps 20", ann, destination)
    await wait_for_end(app, [last.job], wait_until)
    with pytest.raises(UserError, match="above 4294967295"):
        await services.variations.interpolate_pictures(last.job, BOB, destination)
    accepted_jobs = await services.variations.interpolate_pictures(grid.id, BOB, destination)
    views = await wait_for_end(app, [one.job for one in accepted_jobs], wait_until)
    assert [(view.action, view.parent_image) for view in views] == [("walk", (grid.id, 0))] * 4
    images = [recipe_for_image(view.task, image) for view in views for image in range(view.task.count)]
    assert [image.seed for image in images if not image.lineage] == [7, 8, 9]
    assert len(images) == 13
    assert sum(view.ends_interpolation for view in views) == 1
    film = Image.open(io.BytesIO(await services.gallery.render_interpolation_film(views[0].id, film_format="gif")))
    assert film.format == "GIF"
    (varied_ones,) = await wait_for_end(
        app, [(await services.variations.vary(grid.id, 0, ann, destination)).job], wait_until
    )
    for other in (varied_ones, views[0]):
        with pytest.raises(UserError, match="none of which is a variation"):
            await services.variations.interpolate_pictures(other.id, ann, destination)
    reroll = await services.variations.reroll(views[0].id, ann, destination)
    recipe = (await services.job_views.load_view(reroll.job)).task
    assert recipe.interpolation.noises == (recipe.seed, recipe.seed + 1, recipe.seed + 2)
