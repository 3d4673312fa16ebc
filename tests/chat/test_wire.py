"""The unmodified client over real HTTP and a real websocket: logs in, answers, edits, and keeps within the limits.

Behind both stands simcord's world. The server counts as Discord does, five requests in five seconds a bucket, and
answers 429 beyond that: none may come.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord
from aiohttp import web
from aiohttp.test_utils import TestServer
from discord.gateway import DiscordWebSocket
from discord.http import Route
from PIL import Image
from simcord.backend import serializers
from simcord.backend.errors import BackendError
from simcord.http.router import dispatch
from simcord.interactions import base_payload

from bot.chat import client
from bot.config import load

pytestmark = pytest.mark.asyncio

API = "/api/v10"
LIMIT, WINDOW = 5, 5.0


class Loopback:
    """Discord on a port of this machine."""

    def __init__(self) -> None:
        self.env = simcord.Env(discord.Client(intents=discord.Intents.none()))  # never started: only its world is used
        self.backend = self.env.backend
        self.guild = self.env.create_guild()
        self.channel = self.guild.create_text_channel("pictures")
        self.alice = self.guild.add_member(self.env.create_user("alice"))
        self.buckets: dict[str, list[float]] = defaultdict(list)
        self.refused = 0
        self.socket: web.WebSocketResponse | None = None
        self.server: Any = None
        self.app = web.Application(client_max_size=1 << 25)
        self.app.router.add_get("/gateway/", self.gateway)
        self.app.router.add_get(API + "/gateway/bot", self.where)
        self.app.router.add_route("*", API + "/{path:.*}", self.rest)

    async def where(self, _request: web.Request) -> web.Response:
        assert self.server
        limits = {"total": 1000, "remaining": 999, "reset_after": 0, "max_concurrency": 1}
        url = str(self.server.make_url("/gateway/")).replace("http", "ws", 1)
        return answer({"url": url, "shards": 1, "session_start_limit": limits})

    async def gateway(self, request: web.Request) -> web.WebSocketResponse:
        self.socket = socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": 41250}})
        async for message in socket:
            said = json.loads(message.data)
            if said["op"] == 1:
                await socket.send_json({"op": 11})
            elif said["op"] == 2:
                await self.tell("READY", self._ready())
                for guild in self.backend.guilds.values():
                    await self.tell("GUILD_CREATE", serializers.guild_create_payload(self.backend, guild))
        return socket

    def _ready(self) -> dict[str, Any]:
        user, application = serializers.user_payload(self.backend.bot_user), self.backend.application_id
        return {
            "v": 10, "user": user, "guilds": [], "session_id": "s", "resume_gateway_url": "ws://127.0.0.1",
            "shard": [0, 1], "application": {"id": str(application), "flags": 0},
        }  # fmt: skip

    async def tell(self, event: str, payload: Any) -> None:
        assert self.socket
        await self.socket.send_str(json.dumps({"op": 0, "s": 1, "t": event, "d": payload}, default=dict))

    async def rest(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix(API)
        headers, retry = self._count(request.method, path)
        if retry is not None:
            self.refused += 1
            said = {"message": "You are being rate limited.", "retry_after": retry, "global": False}
            return answer(said, 429, headers | {"Via": "1.1 loopback"})
        body, files = await read(request)
        try:
            told = dispatch(self.backend, request.method, path, json=body, params=dict(request.query), files=files)
        except BackendError as error:
            return answer({"code": error.code, "message": str(error)}, error.status, headers)
        return web.Response(status=204, headers=headers) if told is None else answer(told, 200, headers)

    def _count(self, method: str, path: str) -> tuple[dict[str, str], float | None]:
        if method != "PATCH" or "/messages/" not in path:
            return {}, None
        name, now = path.rsplit("/messages/", 1)[0], time.perf_counter()
        spent = self.buckets[name] = [at for at in self.buckets[name] if at > now - WINDOW]
        if len(spent) >= LIMIT:
            return {}, spent[0] + WINDOW - now
        spent.append(now)
        left = {
            "Limit": LIMIT,
            "Remaining": LIMIT - len(spent),
            "Reset-After": spent[0] + WINDOW - now,
            "Bucket": "edit",
        }
        return {f"X-RateLimit-{key}": str(value) for key, value in left.items()}, None

    def commands(self) -> list[Any]:
        return list(self.backend.visible_commands(user_id=self.alice.id, channel_id=self.channel.id))

    async def slash(self, **options: str) -> Any:
        """Alice types `/imagine`; returns what became of it."""
        command = next(each for each in self.commands() if each["name"] == "imagine")
        data = {"id": command["id"], "name": "imagine", "type": 1}
        data["options"] = [{"name": name, "type": 3, "value": value} for name, value in options.items()]
        record, payload = base_payload(
            self.backend, type=2, channel_id=self.channel.id, guild_id=self.guild.id, user_id=self.alice.id, data=data
        )
        await self.tell("INTERACTION_CREATE", payload)
        await until(lambda: record.message_id)
        return record

    def message(self, record: Any) -> Any:
        return self.backend.get_message(self.channel.id, record.message_id)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """With exactly this content type: discord.py takes any other for text."""
    told = {"Content-Type": "application/json", **(headers or {})}
    return web.Response(body=json.dumps(value, default=dict).encode(), status=status, headers=told)


async def read(request: web.Request) -> tuple[Any, list[discord.File]]:
    """The body as JSON, and the files of a multipart one with the descriptions that go with them."""
    if not request.content_type.startswith("multipart/"):
        raw = await request.read()
        return (json.loads(raw) if raw else None), []
    body, files = None, []
    parts: Any = await request.multipart()
    async for part in parts:
        if part.name == "payload_json":
            body = json.loads(await part.text())
        else:
            files.append((part.filename, bytes(await part.read())))
    told = {str(each["id"]): each.get("description") for each in (body or {}).get("attachments", [])}
    return body, [
        discord.File(io.BytesIO(payload), name, description=told.get(str(index)))
        for index, (name, payload) in enumerate(files)
    ]


async def until(what: Any, seconds: float = 60.0) -> Any:
    ends = time.perf_counter() + seconds
    while not (found := what()):
        assert time.perf_counter() < ends, f"not in {seconds} s"
        await asyncio.sleep(0.02)
    return found


async def test_previews_and_finals_over_the_wire_without_one_429(
    open_rooms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", DiscordWebSocket.DEFAULT_GATEWAY)
    loop = Loopback()
    async with TestServer(loop.app) as loop.server, open_rooms() as (house, painter):
        painter.speed = 0.55  # a job of eleven seconds
        work = asyncio.create_task(painter.run())
        api = str(loop.server.make_url(API))
        serving = asyncio.create_task(
            client.serve(load(data=tmp_path, discord_api=api, discord_token="t.o.k"), house.desk)
        )
        await until(lambda: loop.socket and loop.commands() and house.studio.workers())
        records = [await loop.slash(prompt=f"{word} apple") for word in ("red", "green", "blue")]
        shown: dict[int, set[str]] = defaultdict(set)

        def all_done() -> bool:
            for record in records:
                shown[record.id].add(loop.message(record).content.split(" %")[0][-3:])
            return all(
                any(each["filename"].endswith(".png") for each in loop.message(one).attachments) for one in records
            )

        await until(all_done)
        while await house.desk.deliveries.owed("discord"):
            await asyncio.sleep(0.02)
        for task in (serving, work):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert loop.refused == 0, "we caused a 429"
        assert all(len(each) >= 6 for each in shown.values()), "six previews of a job of more than ten seconds"
        (attachment,) = loop.message(records[0]).attachments
        assert attachment["description"] == "red apple"
        payload = loop.backend.cdn.get(attachment["url"])
        assert payload
        assert Image.open(io.BytesIO(payload)).width > 256
