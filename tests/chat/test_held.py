"""Held pictures in Discord: blurred in the grid, refused to buttons, decided by moderators on the card itself."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import discord
import pytest
from PIL import Image

from bot.access import forbidden, subject_of
from bot.chat.post import courier
from bot.images.blur import blurred
from bot.views import Member
from chat.jobs import moderator

pytestmark = pytest.mark.asyncio


async def check_all(world: Any) -> None:
    """The server's rule is that pictures are checked, and a worker can."""
    world.painter.checks = True
    admin = Member("discord:1", "ada", f"discord:{world.guild.id}", admin=True)
    await world.client.desk.administration.set(admin, "guild", "", "check", "on")
    await world.until(lambda: any(one.checks for one in world.studio.workers().values()))


def pictures(world: Any, message: Any) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(world.env.backend.cdn.get(one.url))).convert("RGB") for one in message.attachments
    ]  # fmt: skip


def quarters(recipe: Any, image: int, step: int, form: Any) -> bytes:
    """Four colours, so that a blurred one is told from a clear one."""
    picture = Image.new("RGB", (64, 64), "white")
    for at, ink in zip(((0, 0), (32, 0), (0, 32)), ("red", "lime", "blue"), strict=True):
        picture.paste(ink, (*at, at[0] + 32, at[1] + 32))
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()


def clear(tile: Any) -> bool:
    """Whether the four colours are there, with an edge between them."""
    width, height = tile.size
    left, right = (tile.getpixel((width // 2 + off, height // 4)) for off in (-width // 10, width // 10))
    return all(abs(a - b) < 40 for a, b in zip((*left, *right), (255, 0, 0, 0, 255, 0), strict=True))


def tiles(grid: Image.Image) -> list[Image.Image]:
    half = (grid.width // 2, grid.height // 2)
    return [grid.crop((x, y, x + half[0], y + half[1])) for y in (0, half[1]) for x in (0, half[0])]


async def held(world: Any, verdicts: dict[int, str], **options: Any) -> discord.Message:
    """A finished job of alice's with these verdicts."""
    await check_all(world)
    world.painter.verdicts, world.painter.paint = verdicts, quarters
    return await world.ended(await world.alice.slash(world.channel, "imagine", prompt="red apple", **options))


async def test_the_others_of_the_grid_are_shown_and_the_held_one_is_blurred(open_world: Any) -> None:
    async with open_world() as world:
        card = await held(world, {1: "flagged"})
        assert "Picture 2 is held by the picture check until a moderator has looked at it." in card.content
        assert "Picture 1" not in card.content
        (grid,) = pictures(world, card)
        assert [clear(tile) for tile in tiles(grid)] == [True, False, True, True]
        assert world.labels(card)[-3:] == ["Look at held pictures", "Show 2", "Keep 2 hidden"]
        for label in ("U2", "V2"):
            refused = await world.bob.click(card, label=label)
            assert refused.ephemeral
            assert "Picture 2 is held by the picture check" in refused.response.content
        enlarged = await world.ended(await world.bob.click(card, label="U1"))
        assert clear(pictures(world, enlarged)[0])


async def test_only_moderators_decide(open_world: Any) -> None:
    async with open_world() as world:
        card = await held(world, {1: "flagged"})
        for label in ("Look at held pictures", "Show 2", "Keep 2 hidden"):
            for member in (world.alice, world.bob):
                refused = await member.click(card, label=label)
                assert refused.ephemeral
                assert "moderators" in refused.response.content
        (view,) = await world.studio.recent()
        assert not any(shot.reviewed for shot in view.pictures)
        for action in ("approve", "deny"):
            assert forbidden(action, Member(view.member_id, "alice", view.guild), subject_of(view))
        (grid,) = pictures(world, world.message(card.id))
        assert not clear(tiles(grid)[1])


async def test_a_moderator_looks_alone_and_shows_it_to_all(open_world: Any) -> None:
    async with open_world() as world:
        card, mo = await held(world, {1: "flagged"}), moderator(world)
        looked = await mo.click(card, label="Look at held pictures")
        assert looked.ephemeral
        assert "Only you see this" in looked.response.content
        assert [one.filename for one in looked.response.attachments] == ["SPOILER_held-2.png"]
        assert clear(pictures(world, looked.response)[0])
        assert world.labels(looked.response) == ["Show 2", "Keep 2 hidden"]
        await mo.click(card, label="Show 2")
        shown = world.message(card.id)
        assert "held" not in shown.content
        assert "Show 2" not in world.labels(shown)
        assert all(clear(tile) for tile in tiles(pictures(world, shown)[0]))
        await world.ended(await world.bob.click(shown, label="U2"))


async def test_a_moderator_keeps_it_hidden_and_may_think_again(open_world: Any) -> None:
    async with open_world() as world:
        card, mo = await held(world, {0: "unchecked", 3: "flagged"}), moderator(world)
        assert "Picture 1 could not be checked" in card.content
        assert world.labels(card)[-5:] == [
            "Look at held pictures",
            "Show 1",
            "Keep 1 hidden",
            "Show 4",
            "Keep 4 hidden",
        ]
        film = (await world.bob.click(card, label="Film")).response
        assert film.id in {message.id for message in world.channel.history()}
        await mo.click(card, label="Keep 4 hidden")
        assert film.id not in {message.id for message in world.channel.history()}, "it may have been made before"
        hidden = world.message(card.id)
        assert "Picture 4 stays hidden: a moderator has looked at it." in hidden.content
        assert world.labels(hidden)[-4:] == ["Look at held pictures", "Show 1", "Keep 1 hidden", "Show 4"]
        await world.restart()
        await mo.click(hidden, label="Show 4")
        await mo.click(hidden, label="Show 1")
        assert all(clear(tile) for tile in tiles(pictures(world, world.message(card.id))[0]))


async def test_a_single_picture_and_an_enlarged_one_are_hidden_whole(open_world: Any) -> None:
    async with open_world() as world:
        card, mo = await held(world, {0: "flagged"}, count=1), moderator(world)
        assert not clear(pictures(world, card)[0])
        assert world.labels(card)[-3:] == ["Look at held pictures", "Show", "Keep hidden"]
        await mo.click(card, label="Show")
        assert clear(pictures(world, world.message(card.id))[0])
        enlarged = await world.ended(await world.alice.click(card, label="U1"))
        assert "Picture 1 is held" in enlarged.content
        assert not clear(pictures(world, enlarged)[0])
        await mo.click(enlarged, label="Show")
        assert clear(pictures(world, world.message(enlarged.id))[0])


async def test_previews_are_blurred_until_the_check_has_passed_them(open_world: Any) -> None:
    async with open_world() as world:
        await check_all(world)
        world.painter.early, world.painter.paint, world.painter.stand_at = {2: "flagged"}, quarters, 6
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        identity = result.response.id
        early = await world.until(lambda: (m := world.message(identity)) and m.attachments and m)
        assert not any(clear(tile) for tile in tiles(pictures(world, early)[0]))
        world.painter.stand_at = 15
        world.painter.going.set()
        late = await world.until(lambda: (m := world.message(identity)) and "step 14" in m.content and m)
        assert [clear(tile) for tile in tiles(pictures(world, late)[0])] == [True, True, False, True]
        world.painter.stand_at = None
        world.painter.going.set()
        final = await world.ended(result)
        assert all(clear(tile) for tile in tiles(pictures(world, final)[0])), "the finished one has its own verdict"
        assert not clear(Image.open(io.BytesIO(blurred(quarters(None, 0, 0, "PNG")))))


async def test_an_age_restricted_channel_does_without(open_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated Discord has no such channels, so here one's name says it."""
    monkeypatch.setattr(discord.TextChannel, "is_nsfw", lambda channel: channel.name == "adults")
    async with open_world() as world:
        await check_all(world)
        world.painter.verdicts, world.painter.paint = {0: "flagged"}, quarters
        world.channel = world.guild.create_text_channel("adults")
        card = await world.ended(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        assert "held" not in card.content
        assert all(clear(tile) for tile in tiles(pictures(world, card)[0]))


async def test_what_waits_is_listed_and_decided_from_the_list(open_world: Any) -> None:
    async with open_world() as world:
        mo = moderator(world)
        assert "No picture waits" in (await mo.slash(world.channel, "moderation held")).response.content
        card = await held(world, {1: "flagged", 2: "unchecked"})
        listed = await mo.slash(world.channel, "moderation held")
        assert listed.ephemeral
        assert "**red apple** · alice · 2 held" in listed.response.content
        looked = await mo.click(listed.response, label="Look at 1")
        assert world.labels(looked.response) == ["Show 2", "Keep 2 hidden", "Show 3", "Keep 3 hidden"]
        await mo.click(looked.response, label="Show 2")
        assert [clear(tile) for tile in tiles(pictures(world, world.message(card.id))[0])] == [True, True, False, True]
        assert "Picture 3 could not be checked" in world.message(card.id).content
        again = next(one for one in world.channel.history(viewer=mo) if one.id == looked.response.id)
        assert world.labels(again) == ["Show 3", "Keep 3 hidden"]
        await mo.click(again, label="Keep 3 hidden")
        assert "Picture 3 stays hidden" in world.message(card.id).content
        assert "No picture waits" in (await mo.slash(world.channel, "moderation held")).response.content


async def test_the_notice_of_a_long_job_is_brought_up_to_date_too(open_world: Any) -> None:
    async with open_world() as world:
        await check_all(world)
        admin = Member("discord:1", "ada", f"discord:{world.guild.id}", admin=True)
        await world.client.desk.administration.set(admin, "guild", "", "long_ping", "0")
        world.painter.verdicts, world.painter.paint = {1: "flagged"}, quarters
        mo = moderator(world)
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        history = world.channel.history
        notice = await world.until(lambda: next((m for m in history() if "Show 2" in world.labels(m)), None))
        assert "<@" in notice.content
        listed = await mo.slash(world.channel, "moderation held")
        looked = await mo.click(listed.response, label="Look at 1")
        await mo.click(looked.response, label="Show 2")
        shown = world.message(notice.id)
        assert "<@" in shown.content
        assert all(clear(tile) for tile in tiles(pictures(world, shown)[0]))


async def test_the_author_of_a_private_job_gets_what_a_moderator_showed(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "SWEEP", 0.1)
    async with open_world() as world:
        mo = moderator(world)
        await check_all(world)
        world.painter.verdicts, world.painter.paint = {1: "flagged", 2: "unchecked"}, quarters
        await world.client.desk.preferences.prefer(f"discord:{world.alice.id}", "results", "private")
        asked = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await world.until(lambda: world.painter.done)
        await world.until(lambda: "Cancel" not in world.labels(asked.response))
        listed = await mo.slash(world.channel, "moderation held")
        looked = await mo.click(listed.response, label="Look at 1")
        await mo.click(looked.response, label="Show 2")
        letters = lambda: world.alice.user.dm_channel and list(world.alice.user.dm_channel.history())  # noqa: E731
        (letter,) = await world.until(letters)
        assert [clear(tile) for tile in tiles(pictures(world, letter)[0])] == [True, True, False, True]
        (view,) = await world.studio.recent()
        while (await world.deliveries.of(view.id))["direct"].delivered is None:
            await asyncio.sleep(0.02)
        again = next(one for one in world.channel.history(viewer=mo) if one.id == looked.response.id)
        await mo.click(again, label="Show 3")
        (letter,) = letters()
        assert all(clear(tile) for tile in tiles(pictures(world, letter)[0]))
        assert set(await world.deliveries.of(view.id)) == {"answer", "direct"}
