"""The rules that simcord does not keep are kept: asked over plain HTTP, as any client would."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from loopback.people import Person
from loopback.server import TOKEN, Loopback

pytestmark = pytest.mark.asyncio


@dataclass
class Desk:
    """A loopback, a channel in it, and a client that says what it wants."""

    loopback: Loopback
    client: aiohttp.ClientSession
    guild: Any
    channel: Any

    async def ask(self, method: str, path: str, body: Any = None, *files: bytes) -> tuple[int, Any]:
        """Status and code of an error, or the JSON."""
        form: Any = None
        if files:
            form = aiohttp.FormData()
            form.add_field("payload_json", json.dumps(body))
            for number, payload in enumerate(files):
                form.add_field(f"files[{number}]", io.BytesIO(payload), filename=f"{number}.png")
        given = {"data": form} if form else {"json": body}
        async with self.client.request(method, self.loopback.api + path, **given) as answer:
            told = await answer.json() if answer.content_type == "application/json" else None
            return answer.status, told if answer.status < 400 else (told or {}).get("code")

    async def say(self, text: str = "hello", channel: int | None = None, **more: Any) -> tuple[int, Any]:
        return await self.ask("POST", f"/channels/{channel or self.channel.id}/messages", {"content": text, **more})

    async def edit(self, message: Any, channel: int | None = None) -> tuple[int, Any]:
        path = f"/channels/{channel or self.channel.id}/messages/{message['id']}"
        return await self.ask("PATCH", path, {"content": "again"})

    async def slash(self) -> Any:
        """An interaction that was answered; its record."""
        alice = Person(self.loopback, "alice", self.guild, attachment_size_limit=2000)
        await self.ask("PUT", f"/applications/{self.loopback.world.backend.application_id}/commands", [A_COMMAND])
        act = await alice.slash(self.channel, "draw")
        status, _ = await self.ask(
            "POST", f"/interactions/{act.record.id}/{act.record.token}/callback", {"type": 4, "data": {"content": "x"}}
        )
        assert status == 204
        return act.record

    def original(self, record: Any) -> str:
        return f"/webhooks/{self.loopback.world.backend.application_id}/{record.token}/messages/@original"


A_COMMAND = {"name": "draw", "description": "Draws", "type": 1}


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    headers = {"Authorization": f"Bot {TOKEN}"}
    async with loopback.open(), aiohttp.ClientSession(headers=headers) as client:
        yield Desk(loopback, client, guild, guild.create_text_channel("here"))


async def test_a_token_lives_for_a_quarter_of_an_hour(desk: Desk) -> None:
    record = await desk.slash()
    assert (await desk.ask("PATCH", desk.original(record), {"content": "y"}))[0] == 200
    desk.loopback.world.later(15 * 60 - 10)
    assert (await desk.ask("PATCH", desk.original(record), {"content": "y"}))[0] == 200
    desk.loopback.world.later(10)
    assert await desk.ask("PATCH", desk.original(record), {"content": "y"}) == (401, 50027)
    assert await desk.ask("PATCH", "/webhooks/1/nonsense/messages/@original", {"content": "y"}) == (404, 10015)


async def test_sizes(desk: Desk) -> None:
    record, path = await desk.slash(), f"/channels/{desk.channel.id}/messages"
    assert (await desk.ask("PATCH", desk.original(record), {}, b"a" * 2000))[0] == 200
    assert await desk.ask("PATCH", desk.original(record), {}, b"a" * 2001) == (413, 40005)
    assert (await desk.ask("POST", path, {}, b"a" * 2001))[0] == 200
    assert await desk.ask("POST", path, {}, b"a" * ((10 << 20) + 1)) == (413, 40005)
    assert await desk.ask("POST", path, {}, *[b"a" * (9 << 20)] * 3) == (413, 40005)
    desk.loopback.laws.file = 10
    assert await desk.ask("POST", path, {}, b"a" * 11) == (413, 40005)


async def test_what_the_bot_may_not_see_or_send(desk: Desk) -> None:
    _, message = await desk.say()
    desk.loopback.world.forbid(desk.channel.id, "attach_files")
    assert await desk.ask("POST", f"/channels/{desk.channel.id}/messages", {}, b"a") == (403, 50013)
    desk.loopback.world.forbid(desk.channel.id, "send_messages")
    assert await desk.say() == (403, 50013)
    assert (await desk.edit(message))[0] == 200
    desk.loopback.world.forbid(desk.channel.id, "view_channel")
    assert await desk.edit(message) == (403, 50001)
    desk.loopback.world.forbid(desk.channel.id, "view_channel", forbidden=False)
    assert (await desk.edit(message))[0] == 200
    assert desk.loopback.rates.invalid == 3
    desk.loopback.world.backend.delete_channel(desk.channel.id)
    assert await desk.say() == (404, 10003)


async def test_archived_threads(desk: Desk) -> None:
    thread = desk.loopback.world.thread(desk.channel, "talk")
    _, message = await desk.say(channel=thread.id)
    desk.loopback.world.archive(thread.id)
    assert await desk.edit(message, thread.id) == (400, 50083)
    assert (await desk.say(channel=thread.id))[0] == 200  # which opens it again
    assert (await desk.edit(message, thread.id))[0] == 200
    desk.loopback.world.archive(thread.id, locked=True)
    assert await desk.say(channel=thread.id) == (400, 50083)


async def test_closed_direct_messages(desk: Desk) -> None:
    bob = Person(desk.loopback, "bob")
    _, direct = await desk.ask("POST", "/users/@me/channels", {"recipient_id": str(bob.id)})
    _, message = await desk.say(channel=int(direct["id"]))
    desk.loopback.laws.closed.add(bob.id)
    assert await desk.say(channel=int(direct["id"])) == (403, 50007)
    assert (await desk.edit(message, int(direct["id"])))[0] == 200


async def test_the_same_nonce_makes_no_second_message(desk: Desk) -> None:
    _, first = await desk.say("one", nonce="a", enforce_nonce=True)
    _, second = await desk.say("two", nonce="a", enforce_nonce=True)
    assert (second["id"], second["content"]) == (first["id"], "one")
    assert (await desk.say("three", nonce="a"))[1]["id"] != first["id"]
    assert (await desk.say("four", nonce="b", enforce_nonce=True))[1]["id"] != first["id"]
    desk.loopback.world.later(600)
    assert (await desk.say("five", nonce="a", enforce_nonce=True))[1]["id"] != first["id"]


async def test_edits_of_old_messages_are_few(desk: Desk) -> None:
    desk.loopback.laws.old_edits = 2
    _, message = await desk.say()
    for _ in range(3):
        assert (await desk.edit(message))[0] == 200
    desk.loopback.world.later(3601)
    answers = [await desk.edit(message) for _ in range(2)]
    assert [status for status, _ in answers] == [200, 200]
    desk.loopback.rates.__init__()
    assert await desk.edit(message) == (429, 30046)
    desk.loopback.world.later(3601)
    assert (await desk.edit(message))[0] == 200


async def test_too_many_are_told_when_to_come_again(desk: Desk) -> None:
    for _ in range(5):
        assert (await desk.say())[0] == 200
    async with desk.client.post(f"{desk.loopback.api}/channels/{desk.channel.id}/messages", json={}) as answer:
        told = await answer.json()
        assert answer.status == 429
        assert answer.headers["Via"]
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        assert 0 < told["retry_after"] <= 5
        assert told["global"] is False
