"""Programs with an API key ask over HTTP: they are members of their own, may do what their scopes say, and no more."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from bot.__main__ import app as darkroom
from bot.policy.limits import RATES
from bot.services.api_keys import ApiKeys
from bot.web.middleware import INVALID_KEY
from shared.web_server import ask, make_key, open_shared_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.web_server import WebServer

on_shared_server = pytest.mark.asyncio(loop_scope="module")
FORGED = "dkr_" + "a" * 43


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def public_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WebServer]:
    """A page that others can reach: who asks without a cookie needs a key."""
    async with open_shared_page(tmp_path_factory, allowed_hosts=("other.example",)) as server:
        yield server


def encode_basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@on_shared_server
async def test_a_program_with_a_key_is_a_member_with_its_own_jobs(public_server: WebServer) -> None:
    secret = await make_key(public_server, "webui")
    for authorization in (f"Bearer {secret}", f"bearer {secret}", encode_basic("any body", secret)):
        status, text = await ask(public_server, "POST", "/api/jobs", authorization, {"prompt": "a lamp"})
        assert status == 201, text
        job = json.loads(text)["id"]
        view = await public_server.services.job_views.load_view(job)
        assert (view.member_id, view.member_name) == ("local:key:webui", "webui")
        status, text = await ask(public_server, "GET", f"/api/jobs/{job}", authorization)
        assert json.loads(text)["author"] == {"name": "webui", "you": True}
    (used,) = [key.used for key in await public_server.services.get(ApiKeys).list_all() if key.name == "webui"]
    assert used is not None


@on_shared_server
async def test_a_key_that_is_forged_revoked_or_expired_is_a_401_of_one_sentence(public_server: WebServer) -> None:
    revoked = await make_key(public_server, "one")
    expired = await make_key(public_server, "two", seconds=-1)
    assert (await ask(public_server, "GET", "/api/jobs", f"Bearer {revoked}"))[0] == 200
    await public_server.services.get(ApiKeys).revoke("one")
    for authorization in (
        f"Bearer {revoked}",
        f"Bearer {expired}",
        f"Bearer {FORGED}",
        "Bearer sk-none",
        "Bearer",
        "Basic !",
        "Digest x",
        encode_basic("any", FORGED),
        encode_basic("any", "none"),
    ):
        status, text = await ask(public_server, "GET", "/api/jobs", authorization)
        assert (status, json.loads(text)) == (401, {"error": INVALID_KEY}), authorization


@on_shared_server
async def test_scopes_hold_and_no_key_is_the_operator(public_server: WebServer) -> None:
    imagine = await make_key(public_server, "maker", "imagine")
    read = await make_key(public_server, "reader", "read")
    assert (await ask(public_server, "GET", "/api/jobs", f"Bearer {imagine}")) == (
        403,
        '{"error": "This key may not look at this: that needs the scope read."}',
    )
    status, text = await ask(public_server, "POST", "/api/jobs", f"Bearer {read}", {"prompt": "a lamp"})
    assert (status, json.loads(text)["error"]) == (
        403,
        "This key may not ask for pictures: that needs the scope imagine.",
    )
    assert (await ask(public_server, "POST", "/api/jobs", f"Bearer {imagine}", {"prompt": "a lamp"}))[0] == 201
    assert (await ask(public_server, "GET", "/api/jobs", f"Bearer {read}"))[0] == 200
    for method, path in (("POST", "/api/invitations"), ("GET", "/api/rejections")):
        secret = imagine if method == "POST" else read
        assert (await ask(public_server, method, path, f"Bearer {secret}"))[0] == 403


@on_shared_server
async def test_an_open_room_serves_programs_with_a_made_up_key_but_refuses_a_forged_one(
    shared_server: WebServer,
) -> None:
    """Many programs insist on some key, and on this computer none is needed."""
    assert (await ask(shared_server, "GET", "/api/jobs", "Bearer sk-none"))[0] == 200
    assert (await ask(shared_server, "GET", "/api/jobs", f"Bearer {FORGED}"))[0] == 401
    secret = await make_key(shared_server, "webui")
    status, text = await ask(shared_server, "POST", "/api/jobs", f"Bearer {secret}", {"prompt": "a lamp"})
    assert status == 201, text
    headers = {"Authorization": f"Bearer {secret}", "Origin": "https://evil.example"}
    async with shared_server.client.get(shared_server.url + "/api/jobs", headers=headers) as answer:
        assert answer.status == 403


@on_shared_server
async def test_the_stream_of_a_revoked_key_ends(public_server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.sse.SESSION_SECONDS", 0.05)
    secret = await make_key(public_server, "watcher")
    headers = {"Authorization": f"Bearer {secret}"}
    address = public_server.url + "/api/events"
    async with aiohttp.ClientSession(headers=headers) as program, program.get(address) as page:
        await page.content.readany()
        await public_server.services.get(ApiKeys).revoke("watcher")
        while await page.content.readany():
            pass


@on_shared_server
async def test_the_command_makes_lists_and_revokes_a_key_with_a_budget(
    public_server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*args: str) -> str:
        arguments = ["api-key", *args, "--data", str(public_server.settings.data)]
        await asyncio.to_thread(darkroom, arguments, standalone_mode=False)
        return capsys.readouterr().out

    assert "kiosk" not in await run("--list")
    options = ("--scopes", "imagine, read", "--budget", "0s/day", "--expires", "90d", "--json")
    made = json.loads(await run("kiosk", *options))
    assert made["member"] == "local:key:kiosk"
    assert made["expires"] - made["issued"] == 90 * 86_400
    status, text = await ask(public_server, "POST", "/api/jobs", f"Bearer {made['key']}", {"prompt": "a lamp"})
    assert status == 429, text
    assert "kiosk" in await run("--list")
    assert made["key"] not in await run("--list", "--json")
    assert await run("kiosk", "--revoke") == "The key kiosk is revoked.\n"
    assert (await ask(public_server, "GET", "/api/jobs", f"Bearer {made['key']}"))[0] == 401


@on_shared_server
async def test_the_command_says_what_an_older_key_left(
    public_server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*args: str) -> str:
        arguments = ["api-key", "reborn", *args, "--data", str(public_server.settings.data)]
        await asyncio.to_thread(darkroom, arguments, standalone_mode=False)
        return capsys.readouterr().out

    assert "Its device time: 30 min a day, 1 h a month. " in await run("--budget", "1h/month")
    await run("--revoke")
    made = await run("--budget", "2h/day")
    assert "Its device time: 2 h a day, 1 h a month. " in made, "the month's budget of the old key holds"


@on_shared_server
async def test_guesses_are_bounded_and_a_valid_key_is_served_meanwhile(public_server: WebServer) -> None:
    secret = await make_key(public_server, "patient")
    statuses = {(await ask(public_server, "GET", "/api/jobs", f"Bearer {FORGED}"))[0] for _ in range(30)}
    assert RATES["guess"].burst < 30
    assert statuses == {401, 429}
    assert (await ask(public_server, "GET", "/api/jobs", f"Bearer {secret}"))[0] == 200
