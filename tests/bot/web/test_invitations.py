"""A page that others can reach: one-time addresses, cookies and the terminal's key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import pytest

from bot.web.app import entry_address
from bot.web.auth import terminal_key
from shared.web_server import follow_link, one_time_address, open_session

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio


async def create_invitation(owner: aiohttp.ClientSession, server: WebServer) -> str:
    async with owner.post(f"{server.url}/api/invitations") as answer:
        assert answer.status == 201
        return server.url + (await answer.json())["path"]


async def test_a_page_for_this_computer_needs_no_token_and_recognises_a_visitor(server: WebServer) -> None:
    address = entry_address(server.settings, server.app, server.port)
    assert address.startswith(f"http://127.0.0.1:{server.port}/?token=")
    async with open_session() as browser:
        async with browser.get(server.url) as answer:
            assert answer.status == 200
            cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        async with browser.get(server.url) as answer:
            assert "Set-Cookie" not in answer.headers
        async with browser.post(f"{server.url}/api/jobs", json={"prompt": "a"}) as answer:
            job = (await answer.json())["id"]
        async with browser.get(f"{server.url}/api/jobs/{job}") as answer:
            assert (await answer.json())["author"]["you"]
    _, reply = await server.request_json("GET", f"/api/jobs/{job}")
    assert not reply["author"]["you"]


async def test_a_stranger_sees_nothing_but_the_health_check(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        for path in ("/", "/discord", "/api/jobs", "/api/events", "/api/workers", "/api/jobs?token=x"):
            async with server.client.get(server.url + path) as answer:
                assert answer.status == 403, path
        status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "a"})
        assert status == 403
        assert "one-time address" in reply["error"]
        assert (await server.request_json("GET", "/healthz"))[0] == 200


async def test_a_one_time_address_lets_in_one_browser_only(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        link = one_time_address(server)
        async with open_session() as browser:
            async with follow_link(browser, link) as answer:
                assert answer.status == 201
                assert "HttpOnly" in answer.headers["Set-Cookie"]
                assert "SameSite=Strict" in answer.headers["Set-Cookie"]
            async with browser.get(server.url) as answer:
                assert answer.status == 200
            async with browser.get(link) as answer:  # with the cookie
                assert answer.status == 200
                assert "Set-Cookie" not in answer.headers
                assert 'content="0; url=/"' in await answer.text()
        async with server.client.get(link) as answer:
            assert answer.status == 403
        async with follow_link(server.client, link) as answer:
            assert answer.status == 403
            assert "used already" in (await answer.json())["error"]


async def test_opening_a_one_time_address_does_not_use_it_up(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        link = one_time_address(server)
        for method in ("HEAD", "GET", "GET"):  # as a preview of the link does
            async with server.client.request(method, link) as answer:
                assert answer.status == 200
                assert "Set-Cookie" not in answer.headers
        async with open_session() as browser, follow_link(browser, link) as answer:
            assert answer.status == 201


async def test_an_owner_who_opens_a_guests_invitation_stays_owner(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server, open_session() as browser, open_session() as guest:
        async with follow_link(browser, one_time_address(server)) as answer:
            assert answer.status == 201
        link = await create_invitation(browser, server)
        async with browser.get(link) as answer:
            assert answer.status == 200
        async with follow_link(browser, link) as answer:
            assert answer.status == 200
            assert "Set-Cookie" not in answer.headers
        assert await create_invitation(browser, server)
        async with follow_link(guest, link) as answer:  # nobody has used it yet
            assert answer.status == 201
        async with guest.post(f"{server.url}/api/invitations") as answer:
            assert answer.status == 403
        async with follow_link(guest, one_time_address(server)) as answer:  # an owner's address makes a guest an owner
            assert answer.status == 201
        assert await create_invitation(guest, server)


@pytest.mark.slow
async def test_a_cookie_outlives_a_restart(open_server: OpenServer) -> None:
    async with open_session() as browser:
        async with open_server(host="0.0.0.0") as server, follow_link(browser, one_time_address(server)) as answer:
            assert answer.status == 201
        async with open_server(host="0.0.0.0") as server, browser.get(server.url) as answer:
            assert answer.status == 200


async def test_a_forged_cookie_opens_nothing(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        status, _ = await server.request_json("GET", "/api/jobs", Cookie="darkroom=owner.abcd.0123456789")
        assert status == 403


async def test_the_terminal_authenticates_by_the_key_in_the_data_folder(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server:
        authorization = f"Bearer {await asyncio.to_thread(terminal_key, server.settings.data)}"
        assert (await server.request_json("GET", "/api/jobs", Authorization=authorization))[0] == 200
        assert (await server.request_json("GET", "/api/jobs", Authorization=authorization + "x"))[0] == 401


async def test_behind_a_proxy_the_public_name_is_known_and_the_cookie_is_secure(open_server: OpenServer) -> None:
    async with open_server(public_url="https://pictures.example") as server:
        link = entry_address(server.settings, server.app, server.port)
        assert link.startswith("https://pictures.example/?token=")
        host = {"Host": "pictures.example", "Origin": "https://pictures.example"}
        async with follow_link(server.client, f"{server.url}/?{urlsplit(link).query}", **host) as answer:
            assert answer.status == 201
            assert "Secure" in answer.headers["Set-Cookie"]
        async with server.client.get(server.url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403


async def test_a_page_for_this_computer_has_no_invitations(server: WebServer) -> None:
    status, reply = await server.request_json("POST", "/api/invitations")
    assert status == 422
    assert reply["error"]
