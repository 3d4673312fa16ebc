"""`GET /api/rejections` and `darkroom doctor`: both name a worker whose announcement the bot refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.app.settings import load_settings
from bot.cli import doctor
from bot.cli.instance_lock import RunningInstance, announce_instance
from bot.web.auth import terminal_key
from engine.bus import Bus
from engine.contract import Presence

INVALID_PRESENCE = Presence(
    worker="easel", pools=("default",), models=(), device="paper", rows=50_000, free=0, build="\x1b[31mtest"
)  # fmt: skip


async def _doctor_findings(room: Any) -> list[doctor.Finding]:
    await asyncio.to_thread(announce_instance, room.settings.data, RunningInstance(room.url, 1))
    return await asyncio.to_thread(lambda: list(doctor.check_workers(room.settings)))


@pytest.mark.asyncio
async def test_the_doctor_names_a_worker_that_is_refused(open_room: Any, broker: Any) -> None:
    async with open_room(workers=0) as room:
        [fine] = await _doctor_findings(room)
        assert (fine.name, fine.ok) == ("workers", True)
        stranger = await Bus.connect(broker.url, broker.token)
        await stranger.declare()
        await stranger.announce(INVALID_PRESENCE)
        async with asyncio.timeout(10):
            while not (await room.ask("GET", "/api/rejections"))[1]["rejections"]:
                await asyncio.sleep(0.05)
        await stranger.close()
        [finding] = await _doctor_findings(room)
    assert not finding.ok
    assert finding.says.startswith("worker easel announces rows 50000, which this bot refuses: ")
    assert "1024" in finding.says
    assert finding.mend


@pytest.mark.asyncio
async def test_only_owners_see_the_refused_workers(open_room: Any) -> None:
    async with open_room(workers=0, public_url="https://pictures.example", metrics_token="a-token-of-length") as room:
        for sent in ("", "Bearer a-token-of-length"):
            assert (await room.ask("GET", "/api/rejections", Authorization=sent))[0] == 403
        key = await asyncio.to_thread(terminal_key, room.settings.data)
        assert await room.ask("GET", "/api/rejections", Authorization=f"Bearer {key}") == (200, {"rejections": []})


def test_the_doctor_says_nothing_about_workers_where_no_darkroom_runs(tmp_path: Any) -> None:
    settings = load_settings(data=tmp_path)
    assert list(doctor.check_workers(settings)) == []
    announce_instance(tmp_path, RunningInstance("http://127.0.0.1:9", 1))
    assert list(doctor.check_workers(settings)) == []
