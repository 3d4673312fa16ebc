"""`/mix`, shortcuts to a preference, films in every direction and format and `/walk`."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from PIL import Image

from bot.discord.commands.pictures import join_prompts, mix_prompts
from bot.domain.errors import UserError
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.pictures.animation import available_formats
from engine.contract import Lora, ModelProfile
from shared.discord_jobs import imagine, newest_view
from shared.discord_staff import read_followups, read_text


@pytest.mark.parametrize(
    ("first", "second", "weight", "prompt"),
    [
        ("a cat", "a dog", 0.5, "a cat::0.5 a dog::0.5 --mix"),
        ("a cat --ar 3:2", "a dog --no fog", 0.7, "a cat::0.7 a dog::0.3 --ar 3:2 --no fog --mix"),
        (" a  cat ", "a dog", 1 / 3, "a cat::0.333 a dog::0.667 --mix"),
    ],
)
def test_a_mix_is_one_prompt_with_the_flags_of_both(first: str, second: str, weight: float, prompt: str) -> None:
    assert mix_prompts(first, second, weight) == prompt


@pytest.mark.parametrize(("first", "reason"), [("a:: b::2", "Leave out the weights"), ("--ar 3:2", "needs words")])
def test_a_mix_refuses_weights_and_empty_prompts(first: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        mix_prompts(first, "a dog", 0.5)


@pytest.mark.asyncio
async def test_mix_puts_both_prompts_with_their_weights_into_one_recipe(open_world: Any) -> None:
    async with open_world() as world:
        await world.wait_for_end(
            await world.alice.slash(world.channel, "mix", first="a cat", second="a dog", weight=0.75)
        )
        recipe = (await newest_view(world)).task
        assert recipe.mixed
        first_concept, second_concept = recipe.concepts
        assert (first_concept.text, second_concept.text) == ("a cat", "a dog")
        assert first_concept.weight == pytest.approx(3 * second_concept.weight)


@pytest.mark.asyncio
async def test_shortcuts_set_a_preference_and_turbo_explains_the_speeds(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(worker=False) as world:
        preferences = world.client.services.preferences
        for command, name, value in (
            ("relax", "speed", "relaxed"),
            ("fast", "speed", "fast"),
            ("stealth", "results", "private"),
            ("public", "results", "public"),
        ):
            result = await world.alice.slash(world.channel, command)
            assert result.ephemeral
            assert f"**{value}**" in read_text(result)
            assert getattr(await preferences.load_preference(f"discord:{world.alice.id}"), name) == value
        before = await preferences.load_preference(f"discord:{world.alice.id}")
        answer = read_text(await world.alice.slash(world.channel, "turbo"))
        assert "Turbo is not available here" in answer
        assert "add `--fast`: it takes 30 steps" in answer
        assert await preferences.load_preference(f"discord:{world.alice.id}") == before
        turbo_profile = msgspec.structs.replace(SHIPPED_MODEL, samplers=("ddpm", "lcm"), loras=(Lora("turbo"),))

        def find_profile(_name: str | None) -> ModelProfile:
            return turbo_profile

        monkeypatch.setattr(world.client.services.catalog, "find_profile", find_profile)
        assert "add `--turbo`: it takes 4 steps" in read_text(await world.alice.slash(world.channel, "turbo"))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_film_plays_in_each_direction_and_has_the_requested_format(open_world: Any) -> None:
    async with open_world() as world:
        await imagine(world, count=2)
        job = (await newest_view(world)).id
        for film_kind, kind in (("developing", "gif"), ("dissolving", "webp"), ("both", "gif")):
            reply = await world.bob.slash(world.channel, "film", job=job, format=kind, kind=film_kind, picture=2)
            (attachment,) = reply.response.attachments
            assert attachment.filename.endswith(kind)
            film = Image.open(io.BytesIO(world.env.backend.cdn.get(attachment.url)))
            assert film.format == kind.upper()
            assert getattr(film, "n_frames", 1) > 1, film_kind
        invalid_reply = await world.bob.slash(world.channel, "film", job=job, kind="dissolving", picture=4)
        assert "no such picture" in read_followups(invalid_reply)
        for kind in {"avif", "mp4"} - set(available_formats()):
            refusal = await world.bob.slash(world.channel, "film", job=job, format=kind)
            assert "cannot be made here" in read_text(refusal)
            assert refusal.ephemeral


@pytest.mark.asyncio
async def test_an_interpolation_ends_in_its_film(open_world: Any) -> None:
    async with open_world() as world:
        await world.alice.slash(world.channel, "walk", **{"from": "a cat --seed 7", "to": "a dog", "frames": 6})
        await world.wait_until(lambda: len(world.painter.finished_jobs) == 2)
        views = await world.services.job_views.load_recent()
        await world.wait_until(lambda: not world.app.queue.active_jobs.by_id)
        views = await world.services.job_views.load_recent()
        assert sorted(view.task.interpolation.first for view in views) == [0, 4]
        assert {view.task.seed for view in views} == {7}
        [last] = [view for view in views if view.ends_interpolation]

        def names() -> set[str]:
            messages = world.env.backend.messages[world.channel.id].values()
            return {file["filename"] for message in messages for file in message.attachments}

        await world.wait_until(lambda: f"darkroom-{last.id}-walk.webp" in names())
        [other] = [view for view in views if not view.ends_interpolation]
        reply = await world.bob.slash(world.channel, "film", job=other.id, kind="walk", format="gif")
        [film] = reply.response.attachments
        assert film.filename.endswith("-film.gif")


@pytest.mark.asyncio
async def test_the_walk_button_interpolates_between_the_pictures(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, count=2, seed=7)
        await world.restart()
        replies = [await world.bob.click(grid, label="Walk") for _ in range(2)]
        assert "already on its way" in read_text(replies[1])
        await world.wait_until(lambda: len(world.painter.finished_jobs) == 5)
        await world.wait_until(lambda: not world.app.queue.active_jobs.by_id)
        views = [view for view in await world.services.job_views.load_recent() if view.action == "walk"]
        assert sorted(view.task.interpolation.first for view in views) == [0, 4, 8, 12]
        assert {view.task.interpolation.noises for view in views} == {(7, 8)}


@pytest.mark.parametrize(
    ("start", "end", "prompt"),
    [
        ("a cat", "a dog", "a cat --frames 12 --walk a dog"),
        ("a cat --ar 3:2", " a  dog --no fog", "a cat --ar 3:2 --no fog --frames 12 --walk a dog"),
    ],
)
def test_an_interpolation_is_one_prompt_with_the_flags_of_both(start: str, end: str, prompt: str) -> None:
    assert join_prompts(start, end, 12) == prompt
    with pytest.raises(UserError, match="need words"):
        join_prompts(start, "--no fog", 12)
