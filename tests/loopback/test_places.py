"""Where people ask: direct messages, threads, forum posts, new servers; and places that change meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from loopback.people import Person
from loopback.server import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_in_a_direct_message_whose_token_died(scene: Any) -> None:
    """They take no new messages from the bot; the one that is there can be edited."""
    bob = Person(scene.loopback, "bob", patience=20.0)
    scene.street.painter.stand_at = 10
    act = await bob.slash(None, "imagine", prompt="a secret")
    message = await act.answer()
    scene.loopback.laws.closed.add(bob.id)
    scene.loopback.laws.dead.add(act.record.token)
    scene.go_on()
    assert [one.id for one in await scene.shown(act, channel=bob.dm)] == [message.id]


async def test_in_a_thread_that_is_archived_meanwhile(scene: Any) -> None:
    """Nothing in it can be changed: its author gets the picture in a direct message."""
    thread = scene.loopback.world.thread(scene.channel, "talk")
    scene.street.painter.stand_at = 10
    act = await scene.alice.slash(thread, "imagine", prompt="in a thread")
    await act.answer()
    scene.loopback.world.archive(thread.id)
    scene.go_on()
    (message,) = await scene.shown(act, channel=scene.alice.dm)
    assert "archived" in message.content


async def test_in_a_forum_post(scene: Any) -> None:
    forum = scene.street.guild.create_forum_channel("forum")
    thread = scene.loopback.world.thread(forum, "post")
    act = await scene.alice.slash(thread, "imagine", prompt="in a forum")
    assert [one.id for one in await scene.shown(act, channel=thread.id)] == [(await act.answer()).id]


async def test_where_the_bot_sees_nothing_any_more_the_token_still_serves(scene: Any) -> None:
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    scene.loopback.world.forbid(scene.channel.id, "view_channel", "send_messages")
    scene.go_on()
    assert [one.id for one in await scene.shown(act)] == [act.message.id]


async def test_a_message_that_was_deleted_meanwhile(scene: Any) -> None:
    """It is not made anew where somebody took it away: its author gets the picture in a direct message."""
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    scene.go_on()
    assert len(await scene.shown(act, channel=scene.alice.dm)) == 1
    assert scene.loopback.world.messages(scene.channel.id) == []


@pytest.mark.parametrize("how", ["broken", 502])
async def test_a_direct_message_that_took_effect_unnoticed_is_not_sent_twice(scene: Any, how: Any) -> None:
    scene.street.painter.stand_at = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    troubles, there = scene.loopback.troubles, {"path": "/channels/*/messages", "method": "POST", "carried_out": True}
    trouble = troubles.break_lines(**there) if how == "broken" else troubles.storm(how, times=1, **there)
    scene.go_on()
    await scene.shown(act, channel=scene.alice.dm)
    await until(lambda: trouble.met and asked_again(scene))
    assert len(scene.loopback.world.messages(scene.alice.dm)) == 1


async def test_a_channel_that_is_deleted_meanwhile_and_no_direct_messages(scene: Any) -> None:
    """Nobody can be told, and nobody else is held up."""
    doomed = scene.street.guild.create_text_channel("doomed")
    scene.street.painter.stand_at = 10
    await (await scene.alice.slash(doomed, "imagine", prompt="lost")).answer()
    kept = await scene.imagine("kept")
    scene.loopback.laws.closed.add(scene.alice.id)
    scene.loopback.world.backend.delete_channel(doomed.id)
    scene.go_on()
    assert [one.id for one in await scene.shown(kept)] == [kept.message.id]
    await until(lambda: any(each.path == f"/channels/{scene.alice.dm}/messages" for each in scene.loopback.asked))
    assert scene.loopback.world.messages(scene.alice.dm) == []


async def test_a_member_of_a_new_server(scene: Any) -> None:
    """The bot is invited while it runs."""
    guild = scene.loopback.world.create_guild("another")
    channel = guild.create_text_channel("here")
    carol = Person(scene.loopback, "carol", guild, patience=20.0, locale="de")
    act = await carol.slash(channel, "imagine", prompt="far away")
    await act.answer()
    await scene.shown(act, channel=channel.id)
    assert await until(lambda: not scene.loopback.gaps)


def asked_again(scene: Any) -> bool:
    """The bot looked into the conversation, or sent the message once more."""
    return len([each for each in scene.loopback.asked if each.path == f"/channels/{scene.alice.dm}/messages"]) > 1
