"""Members act over the wire on a plain discord.py bot; the library's own deviations from Discord's description."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import discord
import pytest

from tools.loopback.known_deviations import find_unexplained, find_unused
from tools.loopback.members import Person
from tools.loopback.plain_bot import PlainBot, make_file, run_plain_bot
from tools.loopback.server import Loopback, wait_until

pytestmark = pytest.mark.asyncio

Open = Callable[[Loopback], AbstractAsyncContextManager[PlainBot]]


@pytest.fixture
def open_plain(monkeypatch: pytest.MonkeyPatch) -> Open:
    return lambda loopback: run_plain_bot(loopback, monkeypatch)


async def test_every_kind_of_act_reaches_the_bot(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    alice = Person(loopback, "alice", guild, locale="de", attachment_size_limit=123)
    async with loopback.open(), open_plain(loopback) as bot:
        act = await alice.slash(channel, "say", text="hi", times=2, to=alice.actor)
        message = await act.wait_for_message()
        assert message.content == "hihi de 123 alice"
        assert act.sent_at < (act.answered_at or 0)
        choices = await (await alice.autocomplete(channel, "say", "text", "a")).wait_for_response()
        assert choices.result.autocomplete_choices == [{"name": "apple", "value": "apple"}]
        assert (await (await alice.select(message, ["b"])).wait_for_message()).content == "chose b"
        modal = await (await alice.press(message, label="Words")).wait_for_response()
        assert (await (await alice.submit(modal, {"text": "this"})).wait_for_message()).content == "said this"
        assert (await (await alice.use_menu(channel, "Look at it", message)).wait_for_message()).content == str(
            message.id
        )
        menu_act = await alice.use_menu(channel, "Look at them", alice)
        assert await wait_until(lambda: (message := menu_act.message) and message.content) == "alice"
        await (await alice.press(message, custom_id="press")).wait_for_response()
        assert message.content == "pressed"
        await alice.react(message, "👍")
        await wait_until(lambda: "👍" in bot.received_events)
        assert loopback.gaps == []


async def test_commands_work_in_direct_messages_threads_and_forum_posts(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    forum = guild.create_forum_channel("forum")
    bob = Person(loopback, "bob")
    alice = Person(loopback, "alice", guild)
    async with loopback.open(), open_plain(loopback) as bot:
        assert (await (await bob.slash(None, "say", text="psst")).wait_for_message()).content.startswith(
            "psst en-US 10485760"
        )
        thread = loopback.world.open_thread(channel, "talk")
        assert (await (await alice.slash(thread, "say", text="here")).wait_for_message()).channel_id == thread.id
        created_thread = await bot.get_channel(forum.id).create_thread(name="post", content="first")  # pyright: ignore
        post = loopback.world.find_channel(created_thread.thread.id)
        assert (await (await alice.slash(post, "say", text="there")).wait_for_message()).channel_id == post.id


@pytest.mark.slow
async def test_the_table_of_habits_lists_exactly_the_deviations_of_the_library(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    alice = Person(loopback, "alice", guild)
    async with loopback.open(), open_plain(loopback) as bot:
        await send_every_kind_of_message(bot, channel.id)
        mentions = discord.AllowedMentions(users=[discord.Object(alice.id)])
        await (await bot.fetch_user(alice.id)).send("psst", allowed_mentions=mentions)
        act = await alice.slash(channel, "say", text="hi")
        message = await act.wait_for_message()
        for one in (
            await alice.press(message, custom_id="press"),
            await alice.use_menu(channel, "Look at them", alice),
        ):
            await one.wait_for_response()
        await (await alice.autocomplete(channel, "say", "text", "a")).wait_for_response()
        await wait_until(
            lambda: len([each for each in loopback.requests if each.answered_at]) == len(loopback.requests)
        )
        assert [str(each) for each in find_unexplained(loopback.judge.findings)] == []
        assert find_unused(loopback.judge.findings) == []


async def send_every_kind_of_message(bot: PlainBot, channel: int) -> None:
    """Sends, answers, edits and lists messages, with files and embeds."""
    discord_channel: Any = bot.get_channel(channel)
    embed = (
        discord.Embed(title="a", description="b", colour=0x123456)
        .set_footer(text="c")
        .set_image(url="attachment://a.png")
    )
    sent_message = await discord_channel.send("hello", file=make_file(), embed=embed, nonce="1")
    await sent_message.reply("yes", mention_author=False)
    sent_message = await sent_message.edit(content="hello there", attachments=[make_file("b.png")], embed=embed)
    await sent_message.edit(content="and again", attachments=[*sent_message.attachments])
    await discord_channel.get_partial_message(sent_message.id).edit(content="once more", view=None)
    assert [each.id async for each in discord_channel.history(limit=5)]
    await sent_message.add_reaction("👍")
    await sent_message.create_thread(name="of it")
    await sent_message.delete()
