"""Sessions of visitors: what an open room gives away, and how a session ends. The first tests replay attacks."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from bot.cli.instance_lock import RunningInstance, announce_instance
from bot.web.auth import terminal_key
from shared.web_server import follow_link, one_time_address, open_session

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio

PROXY_SIGNS = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "X-Real-IP",
    "CF-Connecting-IP",
    "CF-Ray",
    "True-Client-IP",
)


async def send_raw(server: WebServer, head: str) -> str:
    """Sends the head of a request; returns the first line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.replace("\n", "\r\n").encode())
    await writer.drain()
    async with asyncio.timeout(10):
        line = (await reader.readline()).decode()
    writer.close()
    return line


async def enter(browser: aiohttp.ClientSession, server: WebServer) -> str:
    """Signs the browser in as operator; returns its cookie."""
    async with follow_link(browser, one_time_address(server)) as answer:
        assert answer.status == 201
        return str(answer.headers["Set-Cookie"]).partition(";")[0]


async def status_of(server: WebServer, method: str, path: str, cookie: str = "") -> int:
    """The status of a request that has no key of the terminal."""
    headers = {"Cookie": cookie} if cookie else {}
    async with aiohttp.ClientSession() as client, client.request(method, server.url + path, headers=headers) as answer:
        return answer.status


async def take_cookie(server: WebServer) -> str:
    """The cookie of a new visitor to an open room."""
    async with aiohttp.ClientSession() as stranger, stranger.get(server.url) as answer:
        assert answer.status == 200
        return str(answer.headers["Set-Cookie"]).partition(";")[0]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_link_on_another_site_replaces_no_cookie(server: WebServer, site: str) -> None:
    """After such a link, a browser leaves its cookie at home: a new one would sign the operator out."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with aiohttp.ClientSession() as browser, browser.get(server.url, headers=headers) as answer:
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/api/jobs"])
async def test_an_open_room_refuses_a_proxy_that_adds_no_header(server: WebServer, path: str) -> None:
    """As `proxy_pass` of nginx: HTTP/1.0, and the name of this computer as Host."""
    head = f"GET {path} HTTP/1.0\nHost: 127.0.0.1:{server.port}\nConnection: close\n\n"
    assert " 403 " in await send_raw(server, head)


@pytest.mark.parametrize("header", PROXY_SIGNS)
async def test_an_open_room_refuses_every_sign_of_a_proxy(server: WebServer, header: str) -> None:
    address = f"{server.url}/api/jobs"
    headers = {header: "192.0.2.9"}
    async with aiohttp.ClientSession() as stranger, stranger.get(address, headers=headers) as answer:
        assert answer.status == 403
        assert "DARKROOM_PUBLIC_URL" in (await answer.json())["error"]


async def test_a_stranger_behind_a_forwarder_is_no_operator(server: WebServer) -> None:
    """A forwarder of bytes leaves no sign. So an open room gives nobody the operator's rights."""
    server.workers[0].step_gate.clear()
    job = await server.imagine("terrier")
    for cookie in ("", await take_cookie(server)):
        assert await status_of(server, "GET", "/api/rejections", cookie) == 403
        assert await status_of(server, "DELETE", f"/api/jobs/{job}", cookie) == 403
        assert await status_of(server, "POST", f"/api/jobs/{job}/pause", cookie) == 403
        assert await status_of(server, "GET", "/api/jobs", cookie) == 200
    server.workers[0].step_gate.set()


async def test_a_visitor_of_an_open_room_asks_for_pictures(server: WebServer) -> None:
    async with open_session() as browser:
        await browser.get(server.url)
        async with browser.post(f"{server.url}/api/jobs", json={"prompt": "a"}) as answer:
            assert answer.status == 201
            job = (await answer.json())["id"]
        async with browser.delete(f"{server.url}/api/jobs/{job}") as answer:  # their own
            assert answer.status == 200
    async with aiohttp.ClientSession() as program:
        answer = await program.post(f"{server.url}/api/jobs", json={"prompt": "a"})
        assert answer.status == 201


@pytest.mark.slow
async def test_a_cookie_of_an_open_room_opens_nothing_once_the_room_is_public(open_server: OpenServer) -> None:
    async with open_server() as server:
        cookie = await take_cookie(server)
    async with open_server(public_url="https://pictures.example") as server:
        assert await status_of(server, "GET", "/", cookie) == 403
        assert await status_of(server, "GET", "/api/jobs", cookie) == 403
        assert await status_of(server, "GET", "/api/rejections", cookie) == 403


@pytest.mark.slow
async def test_a_cookie_that_an_earlier_version_signed_opens_nothing(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        secret = await asyncio.to_thread((server.settings.data / "web.key").read_bytes)
        signature = hmac.new(secret, b"visitor:owner.abcd", "sha256").hexdigest()
        status, reply = await server.request_json("GET", "/api/jobs", Cookie=f"darkroom=owner.abcd.{signature}")
        assert status == 403
        assert "not signed in any more" in reply["error"]
        assert "darkroom visitors invite" in reply["error"]


async def test_a_printed_address_makes_the_operator_of_an_open_room(server: WebServer) -> None:
    async with open_session() as browser:
        await browser.get(server.url)
        async with browser.post(f"{server.url}/api/jobs", json={"prompt": "a"}) as answer:
            job = (await answer.json())["id"]
        old_cookie = await take_cookie(server)
        async with browser.get(one_time_address(server)) as answer:
            assert "data-at-once" in await answer.text()
        cookie = await enter(browser, server)
        assert await status_of(server, "GET", "/api/rejections", cookie) == 200
        async with browser.get(f"{server.url}/api/jobs/{job}") as answer:
            assert (await answer.json())["author"]["you"]  # the same visitor as before
        assert await status_of(server, "GET", "/api/rejections", old_cookie) == 403


async def test_a_session_that_was_signed_out_cannot_be_replayed(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server, open_session() as browser:
        cookie = await enter(browser, server)
        assert await status_of(server, "GET", "/api/jobs", cookie) == 200
        async with browser.post(f"{server.url}/api/sign-out") as answer:
            assert answer.status == 200
            assert 'darkroom=""' in answer.headers["Set-Cookie"]
        assert await status_of(server, "GET", "/api/jobs", cookie) == 403


async def test_signing_out_everywhere_ends_every_browser_of_the_operator(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server, open_session() as browser, open_session() as other:
        cookies = [await enter(one, server) for one in (browser, other)]
        guest = await server.start_session("guest")
        unused_address = one_time_address(server)
        async with browser.post(f"{server.url}/api/sign-out/everywhere", headers={"Origin": "http://evil"}) as answer:
            assert answer.status == 403
        async with browser.post(f"{server.url}/api/sign-out/everywhere") as answer:
            assert answer.status == 200
        assert [await status_of(server, "GET", "/api/jobs", cookie) for cookie in cookies] == [403, 403]
        assert await status_of(server, "GET", "/api/jobs", guest) == 200
        async with follow_link(other, unused_address) as answer:
            assert answer.status == 403


async def test_a_guest_signs_out_alone(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        owner, guest, other = [await server.start_session(kind) for kind in ("operator", "guest", "guest")]
        assert await status_of(server, "POST", "/api/sign-out/everywhere", guest) == 200
        statuses = [await status_of(server, "GET", "/api/jobs", cookie) for cookie in (owner, guest, other)]
        assert statuses == [200, 403, 200]


async def test_an_open_page_ends_with_its_session(open_server: OpenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.sse.SESSION_SECONDS", 0.05)
    async with open_server(host="0.0.0.0", workers=0) as server:
        cookie = await server.start_session("guest")
        async with server.client.get(f"{server.url}/api/events", headers={"Cookie": cookie}) as stream:
            assert stream.status == 200
            await status_of(server, "POST", "/api/sign-out", cookie)
            async with asyncio.timeout(10):
                await stream.read()


async def test_only_the_terminal_makes_an_address_of_the_operator(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0", workers=0) as server:
        body = {"for_operator": True}
        address = "/api/invitations"
        for kind in ("operator", "guest"):
            status, _ = await server.request_json("POST", address, body, Cookie=await server.start_session(kind))
            assert status == 403
        key = await asyncio.to_thread(terminal_key, server.settings.data)
        status, reply = await server.request_json("POST", address, body, Authorization=f"Bearer {key}")
        assert status == 201
        async with open_session() as browser, follow_link(browser, server.url + reply["path"]) as answer:
            assert answer.status == 201


@pytest.mark.slow
async def test_the_command_line_lists_and_revokes_visitors(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0", workers=0) as server:
        owner, guest, other = [await server.start_session(kind) for kind in ("operator", "guest", "guest")]
        listed = json.loads(await run_darkroom(server, "list", "--json"))
        assert sorted(one["kind"] for one in listed) == ["guest", "guest", "operator"]
        assert not any(cookie.partition("=")[2] in json.dumps(listed) for cookie in (owner, guest, other))
        assert "operator" in await run_darkroom(server, "list")
        visitor = next(one["visitor"] for one in listed if one["kind"] == "operator")
        assert await run_darkroom(server, "revoke", visitor[:8]) == "1 browser is signed out.\n"
        statuses = [await status_of(server, "GET", "/api/jobs", cookie) for cookie in (owner, guest, other)]
        assert statuses == [403, 200, 200]
        assert "No visitor" in await run_darkroom(server, "revoke", "nobody")
        assert "or ask for --all" in await run_darkroom(server, "revoke")
        no_bot_line, signed_out_line = (await run_darkroom(server, "revoke", "--all")).splitlines()
        assert signed_out_line == "2 browsers are signed out."
        assert "No bot answers on this machine" in no_bot_line
        assert await status_of(server, "GET", "/api/jobs", guest) == 403
        assert "No Darkroom runs" in await run_darkroom(server, "invite")
        instance = RunningInstance(server.url, os.getpid())
        await asyncio.to_thread(announce_instance, server.settings.data, instance)
        address = await run_darkroom(server, "invite")
        old_address = await run_darkroom(server, "invite")
        async with open_session() as browser, follow_link(browser, address.strip()) as answer:
            assert answer.status == 201
        assert await run_darkroom(server, "revoke", "--all") == "1 browser is signed out.\n"
        async with open_session() as browser, follow_link(browser, old_address.strip()) as answer:
            assert answer.status == 403
        address = await run_darkroom(server, "invite")
        async with open_session() as browser, follow_link(browser, address.strip()) as answer:
            assert answer.status == 201
        assert "Nobody" not in await run_darkroom(server, "list")


async def run_darkroom(server: WebServer, *arguments: str) -> str:
    """Runs `darkroom visitors`; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DATABASE_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bot",
        "visitors",
        *arguments,
        "--data",
        str(server.settings.data),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()
