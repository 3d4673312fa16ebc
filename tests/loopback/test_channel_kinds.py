"""Commands in direct messages, threads, forum posts and new servers, also when these change during a job."""

from __future__ import annotations

from typing import Any

import pytest

from tools.loopback.members import Person
from tools.loopback.server import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.slow
async def test_a_final_reaches_closed_direct_messages_by_edit_when_the_token_is_dead(scene: Any) -> None:
    """The member accepts no new messages from the bot, but the bot can edit its existing message."""
    bob = Person(scene.loopback, "bob", answer_timeout=20.0)
    scene.harness.painter.pause_step = 10
    act = await bob.slash(None, "imagine", prompt="a secret")
    message = await act.wait_for_message()
    scene.loopback.rules.closed_to_direct_messages.add(bob.id)
    scene.loopback.rules.expired_tokens.add(act.record.token)
    scene.resume_jobs()
    assert [one.id for one in await scene.wait_for_finals(act, channel=bob.dm)] == [message.id]


async def test_a_thread_archived_during_a_job_sends_the_picture_to_direct_messages(scene: Any) -> None:
    """Nothing in the thread can change, so its author gets the picture in a direct message."""
    thread = scene.loopback.world.open_thread(scene.channel, "talk")
    scene.harness.painter.pause_step = 10
    act = await scene.alice.slash(thread, "imagine", prompt="in a thread")
    await act.wait_for_message()
    scene.loopback.world.archive(thread.id)
    scene.resume_jobs()
    (message,) = await scene.wait_for_finals(act, channel=scene.alice.dm)
    assert "archived" in message.content


async def test_a_job_in_a_forum_post_is_shown_in_its_answer(scene: Any) -> None:
    forum = scene.harness.guild.create_forum_channel("forum")
    thread = scene.loopback.world.open_thread(forum, "post")
    act = await scene.alice.slash(thread, "imagine", prompt="in a forum")
    assert [one.id for one in await scene.wait_for_finals(act, channel=thread.id)] == [
        (await act.wait_for_message()).id
    ]


async def test_a_token_still_works_in_a_channel_hidden_from_the_bot(scene: Any) -> None:
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.deny_permissions(scene.channel.id, "view_channel", "send_messages")
    scene.resume_jobs()
    assert [one.id for one in await scene.wait_for_finals(act)] == [act.message.id]


async def test_a_message_deleted_during_a_job_sends_the_picture_to_direct_messages(scene: Any) -> None:
    """The bot does not post it again in the channel: its author gets the picture in a direct message."""
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    scene.resume_jobs()
    assert len(await scene.wait_for_finals(act, channel=scene.alice.dm)) == 1
    assert scene.loopback.world.list_messages(scene.channel.id) == []


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["broken", 502])
async def test_a_direct_message_with_a_lost_answer_is_not_sent_twice(scene: Any, failure: Any) -> None:
    scene.harness.painter.pause_step = 10
    act = await scene.imagine()
    scene.loopback.world.backend.delete_message(scene.channel.id, act.message.id)
    faults = scene.loopback.faults
    request_filter = {"path": "/channels/*/messages", "method": "POST", "carried_out": True}
    fault = (
        faults.break_lines(**request_filter)
        if failure == "broken"
        else faults.storm(failure, times=1, **request_filter)
    )
    scene.resume_jobs()
    await scene.wait_for_finals(act, channel=scene.alice.dm)
    await wait_until(lambda: fault.met_count and has_retried_direct_message(scene))
    assert len(scene.loopback.world.list_messages(scene.alice.dm)) == 1


async def test_an_undeliverable_picture_delays_no_other_job(scene: Any) -> None:
    """The bot cannot reach the member, and nobody else has to wait for that."""
    deleted_channel = scene.harness.guild.create_text_channel("doomed")
    scene.harness.painter.pause_step = 10
    await (await scene.alice.slash(deleted_channel, "imagine", prompt="lost")).wait_for_message()
    kept_act = await scene.imagine("kept")
    scene.loopback.rules.closed_to_direct_messages.add(scene.alice.id)
    scene.loopback.world.backend.delete_channel(deleted_channel.id)
    scene.resume_jobs()
    assert [one.id for one in await scene.wait_for_finals(kept_act)] == [kept_act.message.id]
    await wait_until(
        lambda: any(each.path == f"/channels/{scene.alice.dm}/messages" for each in scene.loopback.requests)
    )
    assert scene.loopback.world.list_messages(scene.alice.dm) == []


@pytest.mark.slow
async def test_a_member_of_a_server_that_just_invited_the_bot_gets_a_picture(scene: Any) -> None:
    """The bot is invited while it runs."""
    guild = scene.loopback.world.create_guild("another")
    channel = guild.create_text_channel("here")
    german_member = Person(scene.loopback, "carol", guild, answer_timeout=20.0, locale="de")
    act = await german_member.slash(channel, "imagine", prompt="far away")
    await act.wait_for_message()
    await scene.wait_for_finals(act, channel=channel.id)
    assert await wait_until(lambda: not scene.loopback.gaps)


def has_retried_direct_message(scene: Any) -> bool:
    """Whether the bot read the direct messages, or sent the message again."""
    return len([each for each in scene.loopback.requests if each.path == f"/channels/{scene.alice.dm}/messages"]) > 1
