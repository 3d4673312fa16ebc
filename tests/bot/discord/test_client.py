"""Connecting to Discord: a real HTTP server is down, then up, then refuses the token."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import discord
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.app.settings import load_settings
from bot.discord import start

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def restore_discord_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the library's URLs, which the settings change."""
    monkeypatch.setattr(Route, "BASE", Route.BASE)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", DiscordWebSocket.DEFAULT_GATEWAY)
    monkeypatch.setattr(start, "RETRY_DELAY", 0.01)


async def test_the_client_waits_out_an_outage_and_logs_a_wrong_token_once(
    open_world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [503, 503, 401]

    async def answer_me(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bot not-a-real-token"
        return web.json_response({"message": "no", "code": 0}, status=answers.pop(0))

    app = web.Application()
    app.router.add_get("/api/v10/users/@me", answer_me)
    async with TestServer(app) as server, open_world() as world:
        settings = load_settings(
            data=tmp_path, discord_api=str(server.make_url("/api/v10")), discord_token="not-a-real-token"
        )
        with caplog.at_level(logging.WARNING):
            await asyncio.wait_for(start.run_client(settings, world.app.services), 20.0)
    assert answers == []
    assert caplog.text.count("cannot be reached") == 2
    assert caplog.text.count("Discord refused DISCORD_TOKEN") == 1
    assert "not-a-real-token" not in caplog.text


async def test_without_a_token_serve_returns_at_once(open_world: Any, tmp_path: Path) -> None:
    async with open_world() as world:
        await asyncio.wait_for(
            start.run_client(load_settings(data=tmp_path, discord_token=None), world.app.services), 1.0
        )


async def test_a_start_warns_of_nothing_that_the_bot_does_not_use(
    open_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("warn_nacl", "warn_dave"):  # discord.py warns once in a process
        monkeypatch.setattr(discord.VoiceClient, name, True)
    async with open_world() as world:
        start.create_client(load_settings(data=tmp_path, discord_gateway="ws://127.0.0.1:1"), world.app.services)
    assert "voice" not in caplog.text


async def test_a_client_asks_for_no_privileged_intent_and_pings_nobody(open_world: Any, tmp_path: Path) -> None:
    async with open_world() as world:
        discord_client = start.create_client(
            load_settings(data=tmp_path, discord_gateway="ws://127.0.0.1:1"), world.app.services
        )
        assert discord_client.intents == discord.Intents(guilds=True, guild_reactions=True, dm_reactions=True)
        assert discord_client.allowed_mentions
        assert discord_client.allowed_mentions.to_dict() == discord.AllowedMentions.none().to_dict()
        assert str(DiscordWebSocket.DEFAULT_GATEWAY).startswith("ws://127.0.0.1:1")


async def test_team_members_who_joined_and_may_write_are_operators(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        application = await world.client.application_info()
        assert start.operator_ids_of(application) == {application.owner.id} == world.client.operator_ids
        roles = {1: (2, "admin"), 2: (2, "developer"), 3: (2, "read_only"), 4: (1, "admin"), 5: (2, "")}
        user = {"username": "u", "discriminator": "0", "avatar": None, "global_name": None}
        members: list[Any] = [
            {
                "user": {**user, "id": str(one)},
                "team_id": "9",
                "membership_state": state,
                "role": role,
                "permissions": [],
            }
            for one, (state, role) in roles.items()
        ]
        data: Any = {"id": "9", "name": "team", "icon": None, "owner_user_id": "5", "members": members}
        application.team = discord.Team(world.client._connection, data)
        assert start.operator_ids_of(application) == {1, 2, 5}
