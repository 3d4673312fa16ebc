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
    worker="easel", pools=("default",), models=(), device="paper", rows=50_000, free=0, software_build="\x1b[31mtest"
)


async def _doctor_findings(server: Any) -> list[doctor.Finding]:
    await asyncio.to_thread(announce_instance, server.settings.data, RunningInstance(server.url, 1))
    return await asyncio.to_thread(lambda: list(doctor.check_workers(server.settings)))


@pytest.mark.asyncio
async def test_the_doctor_names_a_worker_that_is_refused(open_server: Any, broker: Any) -> None:
    async with open_server(workers=0) as server:
        [ok_finding] = await _doctor_findings(server)
        assert (ok_finding.name, ok_finding.ok) == ("workers", True)
        foreign_bus = await Bus.connect(broker.url, broker.token)
        await foreign_bus.declare()
        await foreign_bus.announce(INVALID_PRESENCE)
        async with asyncio.timeout(10):
            while not (await server.request_json("GET", "/api/rejections"))[1]["rejections"]:
                await asyncio.sleep(0.05)
        await foreign_bus.close()
        [finding] = await _doctor_findings(server)
    assert not finding.ok
    assert finding.summary.startswith("worker easel announces rows 50000, which this bot refuses: ")
    assert "1024" in finding.summary
    assert finding.remedy


@pytest.mark.asyncio
async def test_only_owners_see_the_refused_workers(open_server: Any) -> None:
    async with open_server(
        workers=0, public_url="https://pictures.example", metrics_token="a-token-of-length"
    ) as server:
        for token, status in (("", 403), ("Bearer a-token-of-length", 401)):
            assert (await server.request_json("GET", "/api/rejections", Authorization=token))[0] == status
        key = await asyncio.to_thread(terminal_key, server.settings.data)
        assert await server.request_json("GET", "/api/rejections", Authorization=f"Bearer {key}") == (
            200,
            {"rejections": []},
        )


def test_the_doctor_says_nothing_about_workers_where_no_darkroom_runs(tmp_path: Any) -> None:
    settings = load_settings(data=tmp_path)
    assert list(doctor.check_workers(settings)) == []
    announce_instance(tmp_path, RunningInstance("http://127.0.0.1:9", 1))
    assert list(doctor.check_workers(settings)) == []
