"""The doctor: each line is true, each fault has a remedy, and no check raises."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.app.settings import Settings, load_settings
from bot.cli import doctor
from bot.cli.doctor import (
    Finding,
    check_broker,
    check_chatroom_port,
    check_discord,
    check_disk,
    check_python,
    findings_to_json,
)
from bot.cli.instance_lock import RunningInstance, announce_instance


def _settings(tmp_path: Path, **changes: Any) -> Settings:
    return load_settings(data=tmp_path, **changes)


@asynccontextmanager
async def _discord_api(status: int) -> AsyncIterator[str]:
    """A local server with the one Discord endpoint that the doctor calls."""

    async def answer_me(request: web.Request) -> web.Response:
        valid = request.headers["Authorization"] == "Bot good"
        return web.json_response({"username": "darkroom"}, status=status if valid else 401)

    app = web.Application()
    app.router.add_get("/api/v10/users/@me", answer_me)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/api/v10"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("token", "status", "ok", "summary", "remedy"),
    [
        ("good", 200, True, "the token is valid: darkroom", ""),
        ("bad-secret", 200, False, "the token is not valid", "Reset Token"),
        ("good", 503, False, "Discord answered 503", "Try again"),
    ],
)
async def test_a_token_is_valid_wrong_or_unchecked(
    tmp_path: Path, token: str, status: int, ok: bool, summary: str, remedy: str
) -> None:
    async with _discord_api(status) as api:
        settings = _settings(tmp_path, discord_token=token, discord_api=api)
        finding = await asyncio.to_thread(check_discord, settings)
    assert (finding.ok, finding.summary) == (ok, summary)
    assert remedy in finding.remedy
    assert "bad-secret" not in str(finding)


def test_an_unreachable_discord_leaves_the_token_unchecked(tmp_path: Path, free_port: int) -> None:
    api = f"http://127.0.0.1:{free_port}/api"
    findings = check_discord(_settings(tmp_path, discord_token="secret-token", discord_api=api))
    assert not findings.ok
    assert "unchecked" in findings.summary
    assert "secret-token" not in str(findings)


def test_no_token_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISCORD_TOKEN", raising=False)
    findings = check_discord(_settings(tmp_path))
    assert findings.ok
    assert "DISCORD_TOKEN" in findings.remedy


def test_a_port_in_use_is_reported(tmp_path: Path, free_port: int) -> None:
    settings = _settings(tmp_path, port=free_port)
    assert check_chatroom_port(settings) == Finding("port", True, f"127.0.0.1:{free_port} is free")
    with socket.create_server(("127.0.0.1", free_port)):
        findings = check_chatroom_port(settings)
        assert not findings.ok
        assert "--port" in findings.remedy


def test_a_stale_announcement_is_ignored(tmp_path: Path, free_port: int) -> None:
    announce_instance(tmp_path, RunningInstance(f"http://127.0.0.1:{free_port}", 1))
    assert check_chatroom_port(_settings(tmp_path, port=free_port)).summary == f"127.0.0.1:{free_port} is free"


def test_a_full_or_unusable_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path / "not" / "yet" / "there").ok or "GiB" in check_disk(tmp_path).summary
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1)
    assert check_disk(tmp_path).ok
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**62)
    findings = check_disk(tmp_path)
    assert not findings.ok
    assert "DARKROOM_DATA" in findings.remedy
    (tmp_path / "file").touch()
    assert not check_disk(tmp_path / "file").ok


def test_an_unreachable_broker_is_reported(tmp_path: Path, free_port: int) -> None:
    assert check_broker(_settings(tmp_path, nats="")).ok
    url = f"nats://127.0.0.1:{free_port}"
    findings = check_broker(_settings(tmp_path, nats=url))
    assert not findings.ok
    assert "DARKROOM_NATS" in findings.remedy
    with socket.create_server(("127.0.0.1", free_port)):
        assert check_broker(_settings(tmp_path, nats=url)).ok


def test_a_finding_prints_its_line_and_its_remedy(tmp_path: Path) -> None:
    assert check_python().ok
    assert str(Finding("port", False, "taken", "Use another.")) == ("BAD port      taken\n              → Use another.")
    assert "\n" not in str(Finding("port", True, "free"))
    assert json.loads(findings_to_json([Finding("port", True, "free")])) == [
        {"name": "port", "ok": True, "says": "free", "mend": ""}
    ]
