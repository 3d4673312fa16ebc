"""A page that others can reach: one-time addresses, cookies and the terminal's key."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from bot.web.app import entry_address
from bot.web.auth import terminal_key

if TYPE_CHECKING:
    from tests.bot.web.conftest import OpenRoom, Room

pytestmark = pytest.mark.asyncio


def one_time_address(room: Room) -> str:
    return f"{room.url}/?{urlsplit(entry_address(room.settings, room.app, room.port)).query}"


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


def enter(browser: aiohttp.ClientSession, once: str, **headers: str) -> AbstractAsyncContextManager[Any]:
    """Sends what the button of the page sends."""
    address = urlsplit(once)
    body = {"token": address.query.removeprefix("token=")}
    return browser.post(f"{address.scheme}://{address.netloc}/api/entrance", json=body, headers=headers)


async def create_invitation(owner: aiohttp.ClientSession, room: Room) -> str:
    async with owner.post(f"{room.url}/api/invitations") as answer:
        assert answer.status == 201
        return room.url + (await answer.json())["path"]


async def test_a_page_for_this_computer_needs_no_token_and_recognises_a_visitor(room: Room) -> None:
    assert entry_address(room.settings, room.app, room.port) == f"http://127.0.0.1:{room.port}/"
    async with open_session() as browser:
        async with browser.get(room.url) as answer:
            assert answer.status == 200
            cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        async with browser.get(room.url) as answer:
            assert "Set-Cookie" not in answer.headers
        async with browser.post(f"{room.url}/api/jobs", json={"prompt": "a"}) as answer:
            job = (await answer.json())["id"]
        async with browser.get(f"{room.url}/api/jobs/{job}") as answer:
            assert (await answer.json())["author"]["you"]
    _, reply = await room.ask("GET", f"/api/jobs/{job}")
    assert not reply["author"]["you"]


async def test_a_stranger_sees_nothing_but_the_health_check(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room:
        for path in ("/", "/discord", "/api/jobs", "/api/events", "/api/workers", "/api/jobs?token=x"):
            async with room.client.get(room.url + path) as answer:
                assert answer.status == 403, path
        status, reply = await room.ask("POST", "/api/jobs", {"prompt": "a"})
        assert status == 403
        assert "one-time address" in reply["error"]
        assert (await room.ask("GET", "/healthz"))[0] == 200


async def test_a_one_time_address_lets_in_one_browser_only(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room:
        once = one_time_address(room)
        async with open_session() as browser:
            async with enter(browser, once) as answer:
                assert answer.status == 201
                assert "HttpOnly" in answer.headers["Set-Cookie"]
                assert "SameSite=Strict" in answer.headers["Set-Cookie"]
            async with browser.get(room.url) as answer:
                assert answer.status == 200
            async with browser.get(once) as answer:  # back again, with the cookie
                assert answer.status == 200
                assert "Set-Cookie" not in answer.headers
                assert 'content="0; url=/"' in await answer.text()
        async with room.client.get(once) as answer:
            assert answer.status == 403
        async with enter(room.client, once) as answer:
            assert answer.status == 403
            assert "used already" in (await answer.json())["error"]


async def test_opening_a_one_time_address_does_not_use_it_up(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room:
        once = one_time_address(room)
        for method in ("HEAD", "GET", "GET"):  # as a preview of the link does
            async with room.client.request(method, once) as answer:
                assert answer.status == 200
                assert "Set-Cookie" not in answer.headers
        async with open_session() as browser, enter(browser, once) as answer:
            assert answer.status == 201


async def test_an_owner_who_opens_a_guests_invitation_stays_owner(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room, open_session() as browser, open_session() as guest:
        async with enter(browser, one_time_address(room)) as answer:
            assert answer.status == 201
        once = await create_invitation(browser, room)
        async with browser.get(once) as answer:
            assert answer.status == 200
        async with enter(browser, once) as answer:
            assert answer.status == 200
            assert "Set-Cookie" not in answer.headers
        assert await create_invitation(browser, room)
        async with enter(guest, once) as answer:  # nobody had used it
            assert answer.status == 201
        async with guest.post(f"{room.url}/api/invitations") as answer:
            assert answer.status == 403
        async with enter(guest, one_time_address(room)) as answer:  # an owner's address makes a guest an owner
            assert answer.status == 201
        assert await create_invitation(guest, room)


@pytest.mark.slow
async def test_a_cookie_outlives_a_restart(open_room: OpenRoom) -> None:
    async with open_session() as browser:
        async with open_room(host="0.0.0.0") as room, enter(browser, one_time_address(room)) as answer:
            assert answer.status == 201
        async with open_room(host="0.0.0.0") as room, browser.get(room.url) as answer:
            assert answer.status == 200


async def test_a_forged_cookie_opens_nothing(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room:
        status, _ = await room.ask("GET", "/api/jobs", Cookie="darkroom=owner.abcd.0123456789")
        assert status == 403


async def test_the_terminal_authenticates_by_the_key_in_the_data_folder(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room:
        bearer = f"Bearer {await asyncio.to_thread(terminal_key, room.settings.data)}"
        assert (await room.ask("GET", "/api/jobs", Authorization=bearer))[0] == 200
        assert (await room.ask("GET", "/api/jobs", Authorization=bearer + "x"))[0] == 403


async def test_behind_a_proxy_the_public_name_is_known_and_the_cookie_is_secure(open_room: OpenRoom) -> None:
    async with open_room(public_url="https://pictures.example") as room:
        once = entry_address(room.settings, room.app, room.port)
        assert once.startswith("https://pictures.example/?token=")
        host = {"Host": "pictures.example", "Origin": "https://pictures.example"}
        async with enter(room.client, f"{room.url}/?{urlsplit(once).query}", **host) as answer:
            assert answer.status == 201
            assert "Secure" in answer.headers["Set-Cookie"]
        async with room.client.get(room.url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403


async def test_a_page_for_this_computer_has_no_invitations(room: Room) -> None:
    status, reply = await room.ask("POST", "/api/invitations")
    assert status == 422
    assert reply["error"]
