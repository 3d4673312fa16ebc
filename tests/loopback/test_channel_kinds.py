"""Commands in direct messages, threads, forum posts and new servers, also when these change during a job."""

from __future__ import annotations

from typing import Any

import pytest

from loopback.members import Person
from loopback.server import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.slow
async def test_a_final_reaches_closed_direct_messages_by_edit_when_the_token_is_dead(scene: Any) -> None:
    """The member accepts no new messages from the bot, but the bot can edit its existing message."""
    bob = Person(scene.loopback, "bob", patience=20.0)
    scene.street.painter.pause_step = 10
    act = await bob.slash(None, "imagine", prompt="a secret")
    message = await act.answer()
    scene.loopback.laws.closed.add(bob.id)
    scene.loopback.laws.dead.add(act.record.token)
    scene.go_on()
    assert [one.id for one in await scene.shown(act, channel=bob.dm)] == [message.id]


async def test_a_thread_archived_during_a_job_sends_the_picture_to_direct_messages(scene: Any) -> None:
    """Nothing in the thread can change, so its author gets the picture in a direct message."""
    thread = scene.loopback.world.thread(scene.channel, "talk")
    scene.street.painter.pause_step = 10
    act = await scene.alice.slash(thread, "imagine", prompt="in a thread")
    await act.answer()
    scene.loopback.world.archive(thread.id)
    scene.go_on()
    (message,) = await scene.shown(act, channel=scene.alice.dm)
    assert "archived" in message.content


async def test_a_job_in_a_forum_post_is_shown_in_its_answer(scene: Any) -> None:
    forum = scene.street.guild.create_forum_channel("forum")
    thread = scene.loopback.world.thread(forum, "post")
    act = await scene.alice.slash(thread, "imagine", prompt="in a forum")
    assert [one.id for one in await scene.shown(act, channel=thread.id)] == [(await act.answer()).id]


async def test_a_token_still_works_in_a_channel_hidden_from_the_bot(scene: Any) -> None:
    scene.street.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.forbid(scene.channel.id, "view_channel", "send_messages")
    scene.go_on()
    assert [one.id for one in await scene.shown(act)] == [act.message.id]


async def test_a_message_deleted_during_a_job_sends_the_picture_to_direct_messages(scene: Any) -> None:
    """The bot does not post it again in the channel: its author gets the picture in a direct message."""
    scene.street.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    scene.go_on()
    assert len(await scene.shown(act, channel=scene.alice.dm)) == 1
    assert scene.loopback.world.messages(scene.channel.id) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["broken", 502])
async def test_a_direct_message_with_a_lost_answer_is_not_sent_twice(scene: Any, how: Any) -> None:
    scene.street.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    troubles, there = scene.loopback.troubles, {"path": "/channels/*/messages", "method": "POST", "carried_out": True}
    trouble = troubles.break_lines(**there) if how == "broken" else troubles.storm(how, times=1, **there)
    scene.go_on()
    await scene.shown(act, channel=scene.alice.dm)
    await until(lambda: trouble.met and has_retried_direct_message(scene))
    assert len(scene.loopback.world.messages(scene.alice.dm)) == 1


async def test_an_undeliverable_picture_delays_no_other_job(scene: Any) -> None:
    """The bot cannot reach the member, and nobody else has to wait for that."""
    doomed = scene.street.guild.create_text_channel("doomed")
    scene.street.painter.pause_step = 10
    await (await scene.alice.slash(doomed, "imagine", prompt="lost")).answer()
    kept = await scene.imagine("kept")
    scene.loopback.laws.closed.add(scene.alice.id)
    scene.loopback.world.backend.delete_channel(doomed.id)
    scene.go_on()
    assert [one.id for one in await scene.shown(kept)] == [kept.message.id]
    await until(lambda: any(each.path == f"/channels/{scene.alice.dm}/messages" for each in scene.loopback.asked))
    assert scene.loopback.world.messages(scene.alice.dm) == []


@pytest.mark.slow
async def test_a_member_of_a_server_that_just_invited_the_bot_gets_a_picture(scene: Any) -> None:
    """The bot is invited while it runs."""
    guild = scene.loopback.world.create_guild("another")
    channel = guild.create_text_channel("here")
    carol = Person(scene.loopback, "carol", guild, patience=20.0, locale="de")
    act = await carol.slash(channel, "imagine", prompt="far away")
    await act.answer()
    await scene.shown(act, channel=channel.id)
    assert await until(lambda: not scene.loopback.gaps)


def has_retried_direct_message(scene: Any) -> bool:
    """Whether the bot read the direct messages, or sent the message again."""
    return len([each for each in scene.loopback.asked if each.path == f"/channels/{scene.alice.dm}/messages"]) > 1
