"""The gateway follows Discord's protocol: a plain discord.py bot resumes or identifies anew, and misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tools.loopback.members import Person
from tools.loopback.plain_bot import PlainBot, run_plain_bot
from tools.loopback.server import Loopback, wait_until

pytestmark = pytest.mark.asyncio

Open = Callable[..., AbstractAsyncContextManager[PlainBot]]


@pytest.fixture
def open_plain(monkeypatch: pytest.MonkeyPatch) -> Open:
    return lambda loopback, **options: run_plain_bot(loopback, monkeypatch, **options)


def make_world(shards: int = 1) -> tuple[Loopback, list[Any], list[Person]]:
    """A server on each shard, with a channel and a member."""
    loopback = Loopback(shards=shards)
    guilds = [loopback.world.create_guild(shard_id=shard) for shard in range(shards)]
    channels = [guild.create_text_channel("here") for guild in guilds]
    return loopback, channels, [Person(loopback, "alice", guild) for guild in guilds]


async def test_a_client_resumes_after_a_drop_and_gets_the_missed_events(open_plain: Open) -> None:
    loopback, (channel,), (alice,) = make_world()
    async with loopback.open(), open_plain(loopback) as bot:
        act = await alice.slash(channel, "say", text="hi")
        message = await act.wait_for_message()
        loopback.gateway.close_connections()
        await alice.react(message, "👍")
        await wait_until(lambda: "resumed" in bot.received_events and "resumed 0" in bot.received_events)
        assert bot.received_events[0] == "👍"
        assert loopback.gateway.log == [("IDENTIFY", 0), ("RESUME", 0)]
        assert (await (await alice.slash(channel, "say", text="yo")).wait_for_message()).content.startswith("yo")


@pytest.mark.slow
async def test_a_client_resumes_after_reconnect_and_after_a_resumable_invalid_session(open_plain: Open) -> None:
    loopback, (channel,), (alice,) = make_world()
    async with loopback.open(), open_plain(loopback) as bot:
        loopback.gateway.order_reconnect()
        await wait_until(lambda: "resumed" in bot.received_events)
        loopback.gateway.invalidate_sessions(is_resumable=True)
        await wait_until(lambda: bot.received_events.count("resumed") == 2)
        assert [each for each, _ in loopback.gateway.log] == ["IDENTIFY", "RESUME", "RESUME"]
        assert await (await alice.slash(channel, "say", text="yo")).wait_for_message()


async def test_a_client_identifies_again_when_its_session_is_gone(open_plain: Open) -> None:
    loopback, (channel,), (alice,) = make_world()
    async with loopback.open(), open_plain(loopback):
        loopback.gateway.invalidate_sessions(is_resumable=False)
        await wait_until(lambda: loopback.gateway.log == [("IDENTIFY", 0)] * 2)
        await wait_until(loopback.gateway.has_all_shards)
        assert await (await alice.slash(channel, "say", text="yo")).wait_for_message()


@pytest.mark.slow
async def test_a_client_leaves_a_gateway_that_does_not_answer_heartbeats(open_plain: Open) -> None:
    loopback, _, _ = make_world()
    loopback.gateway.interval = 0.3
    async with loopback.open(), open_plain(loopback, heartbeat_timeout=1.0) as bot:
        await wait_until(lambda: loopback.gateway.heartbeat_count > 3)
        assert bot.received_events == []
        loopback.gateway.acknowledges_heartbeats = False
        await wait_until(lambda: len(loopback.gateway.log) == 2)
        loopback.gateway.acknowledges_heartbeats = True
        await wait_until(lambda: "resumed" in bot.received_events)


async def test_each_shard_serves_its_own_servers(open_plain: Open) -> None:
    loopback, channels, people = make_world(shards=2)
    async with loopback.open(), open_plain(loopback) as bot:
        assert sorted(loopback.gateway.log) == [("IDENTIFY", 0), ("IDENTIFY", 1)]
        for shard, (channel, alice) in enumerate(zip(channels, people, strict=True)):
            assert alice.guild
            assert (alice.guild.id >> 22) % 2 == shard
            assert await (await alice.slash(channel, "say", text="hi")).wait_for_message()
        second = next(one for one in loopback.gateway.sessions.values() if one.shard == 1)
        assert second.connection
        second.connection.abort()
        await wait_until(lambda: "resumed 1" in bot.received_events)
        assert "resumed 0" not in bot.received_events
        assert await (await people[1].slash(channels[1], "say", text="hi")).wait_for_message()


async def test_a_client_with_a_wrong_token_is_rejected(open_plain: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback, _, _ = make_world()
    monkeypatch.setattr("tools.loopback.plain_bot.TOKEN", "wrong")
    async with loopback.open():
        with pytest.raises(Exception, match="Improper token"):
            async with open_plain(loopback):
                raise AssertionError("the wrong token was accepted")
    assert loopback.gateway.log == []
    assert loopback.rates.invalid_count == 1
