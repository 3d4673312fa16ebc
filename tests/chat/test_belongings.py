"""`/my-data` and `/forget-me`, typed and pressed as members do."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import discord
import pytest

from bot.chat.commands import belongings
from bot.chat.presenter import refusal
from bot.desk.absent import GONE

pytestmark = pytest.mark.asyncio


async def draw(world: Any, who: Any, prompt: str) -> Any:
    return await world.ended(await who.slash(world.channel, "imagine", prompt=f"{prompt} --count 1 --steps 2"))


def said(result: Any) -> str:
    assert result.response
    return result.response.content


async def forgotten(world: Any, who: Any) -> None:
    desk, member = world.house.desk.forgetting, f"discord:{who.id}"
    await world.until(lambda: True)
    while await desk.under_way(member):
        await world.until(lambda: True)


async def test_a_copy_of_ones_own(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world() as world:
        await draw(world, world.alice, "red apple")
        await draw(world, world.bob, "green pear")
        result = await world.alice.slash(world.channel, "my-data")
        assert result.ephemeral
        assert "1 job, in `jobs.json`, and 1 picture" in said(result)
        (attachment,) = result.response.attachments
        with zipfile.ZipFile(io.BytesIO(world.env.backend.cdn.get(attachment.url))) as packed:
            told = packed.read("jobs.json").decode()
            (picture,) = [name for name in packed.namelist() if name != "jobs.json"]
            assert packed.read(picture).startswith(b"\x89PNG")
        assert [one["prompt"].partition(" --")[0] for one in json.loads(told)["jobs"]] == ["red apple"]
        assert "pear" not in told
        assert "token" not in told
        monkeypatch.setattr(belongings, "UPLOAD", 1500)
        small = await world.alice.slash(world.channel, "my-data")
        assert "too large to be sent here" in said(small) or said(small).startswith(refusal("")[:1])


async def test_everything_of_ones_own_goes_after_a_question(open_world: Any) -> None:
    async with open_world() as world:
        mine, other = await draw(world, world.alice, "red apple"), await draw(world, world.bob, "green pear")
        job = next(view for view in await world.studio.recent() if "red apple" in view.prompt).id
        asked = await world.alice.slash(world.channel, "forget-me")
        assert asked.ephemeral
        assert "That is 1 job with their pictures" in said(asked)
        assert "Blocks and moderators' decisions stay." in said(asked)
        assert "red apple" in mine.content, "nothing went yet"
        await world.restart()
        await world.alice.click(asked.response, label="Remove everything")
        assert "under way: 1 job" in said(asked)
        assert not asked.response.components
        await forgotten(world, world.alice)
        shown = [message.id for message in world.channel.history()]
        assert mine.id not in shown
        assert other.id in shown
        assert await world.house.store.record(job) is None
        board = await world.client.get_partial_messageable(world.channel.id, guild_id=world.guild.id).send(
            "left", view=a_button(f"reroll:{job}")
        )
        pressed = await world.bob.click(board, custom_id=f"reroll:{job}")
        assert said(pressed) == refusal(GONE["forgotten"])
        again = await world.alice.slash(world.channel, "forget-me")
        assert "That is 0 jobs" in said(again)


def a_button(custom_id: str) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    view.add_item(discord.ui.Button(label="again", custom_id=custom_id))
    view.stop()
    return view


async def test_what_runs_is_cancelled_and_a_message_that_must_stay_stops_nothing(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.stand_at = 1
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple --count 1")
        await world.until(lambda: not world.painter.going.is_set())
        identity = result.response.id
        await world.house.desk.deliveries.moved((await world.studio.queue(None))[0].id, channel="1", token="")
        asked = await world.alice.slash(world.channel, "forget-me")
        await world.alice.click(asked.response, label="Remove everything")
        await forgotten(world, world.alice)
        assert await world.studio.queue(None) == []
        assert identity in [message.id for message in world.channel.history()], "it could not be found to be deleted"
