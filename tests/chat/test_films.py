"""A film shows a channel nothing that its server's rules keep from it, and goes with its job."""

from __future__ import annotations

from typing import Any

import pytest

from bot.views import Member
from chat.staff import text

pytestmark = pytest.mark.asyncio


def admin(world: Any) -> Member:
    return Member("discord:1", "Ada", f"discord:{world.guild.id}", moderator=True, admin=True)


async def drawn(world: Any, channel: Any, prompt: str) -> str:
    """A finished job of alice's in `channel`, or alone with the bot."""
    already = len(world.painter.done)
    if channel is None:
        await world.alice.user.slash("imagine", prompt=prompt, count=1)
    else:
        await world.alice.slash(channel, "imagine", prompt=prompt, count=1)
    await world.until(lambda: len(world.painter.done) > already)
    (view, *_) = await world.studio.recent()
    await world.until(lambda: view.id not in world.house.board.runs)
    return view.id


async def test_a_film_is_public_only_where_its_job_would_be_now(open_world: Any) -> None:
    async with open_world() as world:
        rules = world.house.desk.administration
        art = world.guild.create_text_channel("art")
        alone, there, here = [await drawn(world, each, "red apple") for each in (None, art, world.channel)]

        async def public(job: str, channel: Any = world.channel) -> bool:
            shown = await world.alice.slash(channel, "film", job=job)
            assert len(shown.response.attachments) == 1, text(shown)
            return not shown.ephemeral

        assert await public(here)
        assert not await public(alone), "no list and no check has seen it"
        assert not await public(there), "other rules may hold there"
        assert await public(there, art)
        for setting, value in (("words", "apple"), ("results", "private"), ("check", "on"), ("patterns", "ap+le")):
            await rules.set(admin(world), "guild", "", setting, value)
            assert not await public(here), setting
            await rules.unset(admin(world), "guild", "", setting)
        assert await public(here)
