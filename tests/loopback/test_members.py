"""Members act over the wire on a plain discord.py bot; the library's own deviations from Discord's description."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import discord
import pytest

from loopback.known_deviations import unexplained, unused
from loopback.members import Person
from loopback.plain_bot import Plain, a_file, plain
from loopback.server import Loopback, until

pytestmark = pytest.mark.asyncio

Open = Callable[[Loopback], AbstractAsyncContextManager[Plain]]


@pytest.fixture
def open_plain(monkeypatch: pytest.MonkeyPatch) -> Open:
    return lambda loopback: plain(loopback, monkeypatch)


async def test_every_kind_of_act_reaches_the_bot(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    alice = Person(loopback, "alice", guild, locale="de", attachment_size_limit=123)
    async with loopback.open(), open_plain(loopback) as bot:
        act = await alice.slash(channel, "say", text="hi", times=2, to=alice.actor)
        message = await act.answer()
        assert message.content == "hihi de 123 alice"
        assert act.sent < (act.answered or 0)
        choices = await (await alice.autocomplete(channel, "say", "text", "a")).taken()
        assert choices.result.autocomplete_choices == [{"name": "apple", "value": "apple"}]
        assert (await (await alice.select(message, ["b"])).answer()).content == "chose b"
        modal = await (await alice.press(message, label="Words")).taken()
        assert (await (await alice.submit(modal, {"text": "this"})).answer()).content == "said this"
        assert (await (await alice.menu(channel, "Look at it", message)).answer()).content == str(message.id)
        greeting = await alice.menu(channel, "Look at them", alice)
        assert await until(lambda: (await_ := greeting.message) and await_.content) == "alice"
        await (await alice.press(message, custom_id="press")).taken()
        assert message.content == "pressed"
        await alice.react(message, "👍")
        await until(lambda: "👍" in bot.told)
        assert loopback.gaps == []


async def test_commands_work_in_direct_messages_threads_and_forum_posts(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    forum = guild.create_forum_channel("forum")
    bob, alice = Person(loopback, "bob"), Person(loopback, "alice", guild)
    async with loopback.open(), open_plain(loopback) as bot:
        assert (await (await bob.slash(None, "say", text="psst")).answer()).content.startswith("psst en-US 10485760")
        thread = loopback.world.thread(channel, "talk")
        assert (await (await alice.slash(thread, "say", text="here")).answer()).channel_id == thread.id
        posted = await bot.get_channel(forum.id).create_thread(name="post", content="first")  # pyright: ignore
        post = loopback.world.channel(posted.thread.id)
        assert (await (await alice.slash(post, "say", text="there")).answer()).channel_id == post.id


@pytest.mark.slow
async def test_the_table_of_habits_lists_exactly_the_deviations_of_the_library(open_plain: Open) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("here")
    alice = Person(loopback, "alice", guild)
    async with loopback.open(), open_plain(loopback) as bot:
        await send_every_kind_of_message(bot, channel.id)
        them = discord.AllowedMentions(users=[discord.Object(alice.id)])
        await (await bot.fetch_user(alice.id)).send("psst", allowed_mentions=them)
        act = await alice.slash(channel, "say", text="hi")
        message = await act.answer()
        for one in (await alice.press(message, custom_id="press"), await alice.menu(channel, "Look at them", alice)):
            await one.taken()
        await (await alice.autocomplete(channel, "say", "text", "a")).taken()
        await until(lambda: len([each for each in loopback.asked if each.done]) == len(loopback.asked))
        assert [str(each) for each in unexplained(loopback.judge.findings)] == []
        assert unused(loopback.judge.findings) == []


async def send_every_kind_of_message(bot: Plain, channel: int) -> None:
    """Sends, answers, edits and lists messages, with files and embeds."""
    here: Any = bot.get_channel(channel)
    embed = (
        discord.Embed(title="a", description="b", colour=0x123456)
        .set_footer(text="c")
        .set_image(url="attachment://a.png")
    )
    sent = await here.send("hello", file=a_file(), embed=embed, nonce="1")
    await sent.reply("yes", mention_author=False)
    sent = await sent.edit(content="hello there", attachments=[a_file("b.png")], embed=embed)
    await sent.edit(content="and again", attachments=[*sent.attachments])
    await here.get_partial_message(sent.id).edit(content="once more", view=None)
    assert [each.id async for each in here.history(limit=5)]
    await sent.add_reaction("👍")
    await sent.create_thread(name="of it")
    await sent.delete()
