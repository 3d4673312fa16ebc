"""A film is public only where the server's rules allow its job, and is deleted with its job."""

from __future__ import annotations

from typing import Any

import discord
import pytest

from bot.domain.dto import Member
from shared.discord_staff import read_text

pytestmark = pytest.mark.asyncio


def admin(world: Any) -> Member:
    return Member("discord:1", "Ada", f"discord:{world.guild.id}", is_moderator=True, is_admin=True)


async def imagine(world: Any, channel: Any, prompt: str) -> str:
    """Finish a job of alice's in `channel`, or in a direct message, and return its id."""
    finished_before = len(world.painter.finished_jobs)
    if channel is None:
        await world.alice.user.slash("imagine", prompt=prompt, count=1)
    else:
        await world.alice.slash(channel, "imagine", prompt=prompt, count=1)
    await world.wait_until(lambda: len(world.painter.finished_jobs) > finished_before)
    (view, *_) = await world.services.job_views.load_recent()
    await world.wait_until(lambda: view.id not in world.app.queue.active_jobs.by_id)
    return view.id


async def test_a_film_is_public_only_where_its_job_would_be_now(open_world: Any) -> None:
    async with open_world() as world:
        rules = world.app.services.rule_admin
        art_channel = world.guild.create_text_channel("art")
        direct_job, art_job, channel_job = [
            await imagine(world, each, "red apple") for each in (None, art_channel, world.channel)
        ]

        async def is_public(job: str, channel: Any = world.channel) -> bool:
            reply = await world.alice.slash(channel, "film", job=job)
            assert len(reply.response.attachments) == 1, read_text(reply)
            return not reply.ephemeral

        assert await is_public(channel_job)
        assert not await is_public(direct_job), "no word filter and no picture check has seen it"
        assert not await is_public(art_job), "other rules may hold there"
        assert await is_public(art_job, art_channel)
        for setting, value in (("words", "apple"), ("results", "private"), ("check", "on"), ("patterns", "ap+le")):
            await rules.set_rule(admin(world), "guild", "", setting, value)
            assert not await is_public(channel_job), setting
            await rules.unset_rule(admin(world), "guild", "", setting)
        assert await is_public(channel_job)


async def test_films_are_deleted_with_their_job(open_world: Any) -> None:
    async with open_world() as world:
        role = world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True))
        moderator = world.guild.add_member(world.env.create_user("mo"), roles=[role])

        def message_ids() -> set[int]:
            return {message.id for message in world.channel.history()}

        job = await imagine(world, world.channel, "red apple")
        films = [(await member.slash(world.channel, "film", job=job)).response for member in (world.alice, world.bob)]
        assert message_ids() >= {film.id for film in films}
        assert set(await world.deliveries.list_deliveries(job)) == {"answer"}, "no film is owed"
        (entry,) = (await world.app.services.history.load_page(f"discord:{world.alice.id}", "all", 1)).entries
        assert entry.destination.address["message"] not in {str(film.id) for film in films}
        assert "red apple" in read_text(await world.bob.context_menu(world.channel, "Details", films[0].message))
        await moderator.react(films[1].message, "❌")
        await world.wait_until(lambda: message_ids() == set())
        assert await world.deliveries.list_films(job) == []
        destination = (await world.deliveries.list_deliveries(job))["answer"].destination
        assert not await world.deliveries.add_film(job, destination), "the job was deleted while the film was rendered"
