"""The server enforces Discord's rules that simcord lacks; tested over plain HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tools.loopback.members import Person
from tools.loopback.server import TOKEN, Loopback

pytestmark = pytest.mark.asyncio


@dataclass
class ApiClient:
    """A loopback, a channel in it, and a plain HTTP client."""

    loopback: Loopback
    client: aiohttp.ClientSession
    guild: Any
    channel: Any

    async def request(self, method: str, path: str, body: Any = None, *files: bytes) -> tuple[int, Any]:
        """The status, and the code of an error or the JSON."""
        form: Any = None
        if files:
            form = aiohttp.FormData()
            form.add_field("payload_json", json.dumps(body))
            for number, payload in enumerate(files):
                form.add_field(f"files[{number}]", io.BytesIO(payload), filename=f"{number}.png")
        body_options = {"data": form} if form else {"json": body}
        async with self.client.request(method, self.loopback.api + path, **body_options) as answer:
            result = await answer.json() if answer.content_type == "application/json" else None
            return answer.status, result if answer.status < 400 else (result or {}).get("code")

    async def post_message(self, text: str = "hello", channel: int | None = None, **fields: Any) -> tuple[int, Any]:
        return await self.request(
            "POST", f"/channels/{channel or self.channel.id}/messages", {"content": text, **fields}
        )

    async def edit(self, message: Any, channel: int | None = None) -> tuple[int, Any]:
        path = f"/channels/{channel or self.channel.id}/messages/{message['id']}"
        return await self.request("PATCH", path, {"content": "again"})

    async def use_command(self) -> Any:
        """Sends and answers an interaction; returns its record."""
        alice = Person(self.loopback, "alice", self.guild, attachment_size_limit=2000)
        await self.request("PUT", f"/applications/{self.loopback.world.backend.application_id}/commands", [COMMAND])
        act = await alice.slash(self.channel, "draw")
        status, _ = await self.request(
            "POST", f"/interactions/{act.record.id}/{act.record.token}/callback", {"type": 4, "data": {"content": "x"}}
        )
        assert status == 204
        return act.record

    def original(self, record: Any) -> str:
        return f"/webhooks/{self.loopback.world.backend.application_id}/{record.token}/messages/@original"


COMMAND = {"name": "draw", "description": "Draws", "type": 1}


@pytest_asyncio.fixture
async def api() -> AsyncIterator[ApiClient]:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    headers = {"Authorization": f"Bot {TOKEN}"}
    async with loopback.open(), aiohttp.ClientSession(headers=headers) as client:
        yield ApiClient(loopback, client, guild, guild.create_text_channel("here"))


async def test_a_token_expires_after_15_minutes(api: ApiClient) -> None:
    record = await api.use_command()
    assert (await api.request("PATCH", api.original(record), {"content": "y"}))[0] == 200
    api.loopback.world.advance_clock_by(15 * 60 - 10)
    assert (await api.request("PATCH", api.original(record), {"content": "y"}))[0] == 200
    api.loopback.world.advance_clock_by(10)
    assert await api.request("PATCH", api.original(record), {"content": "y"}) == (401, 50027)
    assert await api.request("PATCH", "/webhooks/1/nonsense/messages/@original", {"content": "y"}) == (404, 10015)


async def test_files_and_requests_over_the_size_limits_are_rejected(api: ApiClient) -> None:
    record = await api.use_command()
    path = f"/channels/{api.channel.id}/messages"
    assert (await api.request("PATCH", api.original(record), {}, b"a" * 2000))[0] == 200
    assert await api.request("PATCH", api.original(record), {}, b"a" * 2001) == (413, 40005)
    assert (await api.request("POST", path, {}, b"a" * 2001))[0] == 200
    assert await api.request("POST", path, {}, b"a" * ((10 << 20) + 1)) == (413, 40005)
    assert await api.request("POST", path, {}, *[b"a" * (9 << 20)] * 3) == (413, 40005)
    api.loopback.rules.max_file_bytes = 10
    assert await api.request("POST", path, {}, b"a" * 11) == (413, 40005)


async def test_a_channel_without_permission_rejects_the_bot(api: ApiClient) -> None:
    _, message = await api.post_message()
    api.loopback.world.deny_permissions(api.channel.id, "attach_files")
    assert await api.request("POST", f"/channels/{api.channel.id}/messages", {}, b"a") == (403, 50013)
    api.loopback.world.deny_permissions(api.channel.id, "send_messages")
    assert await api.post_message() == (403, 50013)
    assert (await api.edit(message))[0] == 200
    api.loopback.world.deny_permissions(api.channel.id, "view_channel")
    assert await api.edit(message) == (403, 50001)
    api.loopback.world.deny_permissions(api.channel.id, "view_channel", is_denied=False)
    assert (await api.edit(message))[0] == 200
    assert api.loopback.rates.invalid_count == 3
    api.loopback.world.backend.delete_channel(api.channel.id)
    assert await api.post_message() == (404, 10003)


async def test_an_archived_thread_takes_no_edit_and_a_locked_one_no_message(api: ApiClient) -> None:
    thread = api.loopback.world.open_thread(api.channel, "talk")
    _, message = await api.post_message(channel=thread.id)
    api.loopback.world.archive(thread.id)
    assert await api.edit(message, thread.id) == (400, 50083)
    assert (await api.post_message(channel=thread.id))[0] == 200  # a new message reopens it
    assert (await api.edit(message, thread.id))[0] == 200
    api.loopback.world.archive(thread.id, is_locked=True)
    assert await api.post_message(channel=thread.id) == (400, 50083)


async def test_closed_direct_messages_allow_edits_but_no_new_message(api: ApiClient) -> None:
    bob = Person(api.loopback, "bob")
    _, direct = await api.request("POST", "/users/@me/channels", {"recipient_id": str(bob.id)})
    _, message = await api.post_message(channel=int(direct["id"]))
    api.loopback.rules.closed_to_direct_messages.add(bob.id)
    assert await api.post_message(channel=int(direct["id"])) == (403, 50007)
    assert (await api.edit(message, int(direct["id"])))[0] == 200


async def test_the_same_nonce_makes_no_second_message(api: ApiClient) -> None:
    _, first = await api.post_message("one", nonce="a", enforce_nonce=True)
    _, second = await api.post_message("two", nonce="a", enforce_nonce=True)
    assert (second["id"], second["content"]) == (first["id"], "one")
    assert (await api.post_message("three", nonce="a"))[1]["id"] != first["id"]
    assert (await api.post_message("four", nonce="b", enforce_nonce=True))[1]["id"] != first["id"]
    api.loopback.world.advance_clock_by(600)
    assert (await api.post_message("five", nonce="a", enforce_nonce=True))[1]["id"] != first["id"]


async def test_edits_of_old_messages_are_limited(api: ApiClient) -> None:
    api.loopback.rules.old_edits = 2
    _, message = await api.post_message()
    for _ in range(3):
        assert (await api.edit(message))[0] == 200
    api.loopback.world.advance_clock_by(3601)
    answers = [await api.edit(message) for _ in range(2)]
    assert [status for status, _ in answers] == [200, 200]
    api.loopback.rates.__init__()
    assert await api.edit(message) == (429, 30046)
    api.loopback.world.advance_clock_by(3601)
    assert (await api.edit(message))[0] == 200


async def test_a_429_says_when_to_retry(api: ApiClient) -> None:
    for _ in range(5):
        assert (await api.post_message())[0] == 200
    async with api.client.post(f"{api.loopback.api}/channels/{api.channel.id}/messages", json={}) as answer:
        body = await answer.json()
        assert answer.status == 429
        assert answer.headers["Via"]
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        assert 0 < body["retry_after"] <= 5
        assert body["global"] is False
