"""Allowed links, known deceptive links, and fetches from a real server behind Discord's name."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from bot.domain.errors import UserError
from bot.pictures.uploads import image_links
from bot.pictures.uploads.image_links import check_link, fetch_file, is_discord_file, parse_own_picture
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES
from shared.discord_files import ATTACHED, DECEPTIVE_URLS, HOSTS, SENT, LocalResolver, certificate, serve_as_discord

__all__ = ["certificate"]

OWN = "https://pictures.example/darkroom"
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.mark.parametrize(
    "url", [*DECEPTIVE_URLS, "", " ", *(ATTACHED + end for end in ("\n", "\r\nHost: x", "\t", "\0", " "))]
)
def test_no_url_trick_is_allowed(url: str) -> None:
    assert not is_discord_file(url)
    assert not parse_own_picture(url, OWN)
    with pytest.raises(UserError, match="Only pictures that were uploaded to Discord or here"):
        check_link(url)


def test_links_that_discord_hands_out_are_allowed() -> None:
    for host in HOSTS:
        for url in (f"https://{host}/attachments/1/2/a%20cat-(1)_~.png", f"https://{host}:443/a.png?ex=1&width=8"):
            assert check_link(url) == url
    assert check_link(ATTACHED) == ATTACHED
    assert not is_discord_file(ATTACHED + "a" * image_links.MAX_URL_LENGTH)


AUTHORITY = st.text(st.sampled_from("cdn.iscordapmet@:/\\?#[]%0123456789-\t") | st.characters(), max_size=60)


@given(
    st.one_of(
        st.text(),
        st.builds("https://{}".format, AUTHORITY),
        st.builds(
            "{}{}{}".format,
            st.text(max_size=5),
            st.sampled_from([ATTACHED, *(f"https://{host}" for host in HOSTS)]),
            AUTHORITY,
        ),
    )
)
def test_every_url_parser_reads_an_allowed_link_as_discords(url: str) -> None:
    if is_discord_file(url):
        assert (URL(url).scheme, URL(url).host in HOSTS, URL(url).port, URL(url).user) == ("https", True, 443, None)
        parts = urlsplit(url)
        assert (parts.scheme, parts.hostname in HOSTS, parts.username, parts.port in (None, 443)) == (
            "https",
            True,
            None,
            True,
        )


def test_links_to_the_pages_own_pictures_are_recognised() -> None:
    assert parse_own_picture(f"{OWN}/api/jobs/{JOB}/pictures/3.png", OWN) == (JOB, 3)
    assert parse_own_picture(f"{OWN}/api/jobs/{JOB}/pictures/3.png", OWN + "/") == (JOB, 3)
    signed = f"/v1/pictures/{JOB}/2.webp?expires=1&quality=&signature=0a"
    assert parse_own_picture(OWN + signed, OWN) == (JOB, 2)
    assert parse_own_picture(f"https://evil.example{signed}", OWN) is None
    assert parse_own_picture(f"http://127.0.0.1:8189/api/jobs/{JOB}/pictures/1.png", "http://127.0.0.1:8189")
    for url in (
        f"{OWN}/api/jobs/{JOB}/pictures/0.png",
        f"{OWN}/api/jobs/{JOB}/pictures/1.png?x",
        f"{OWN}/api/jobs/{JOB}/film.webp",
        f"{OWN}/api/jobs/{JOB}/pictures/1.png\n",
        f"{OWN}/api/jobs/../{JOB}/pictures/1.png",
        f"{OWN}.evil.example/api/jobs/{JOB}/pictures/1.png",
        f"https://pictures.example@evil.example/api/jobs/{JOB}/pictures/1.png",
    ):
        assert not parse_own_picture(url, OWN)
        assert not is_discord_file(url)
    for page_url in (None, "", "/", "javascript:", "https://"):
        assert not parse_own_picture(f"{page_url or ''}/api/jobs/{JOB}/pictures/1.png", page_url)


async def _send_too_much(request: web.Request) -> web.StreamResponse:
    """Sends four times the limit without a Content-Length."""
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        for _ in range(4 * MAX_UPLOAD_BYTES >> 20):
            await response.write(bytes(1 << 20))
            await asyncio.sleep(0)  # now a lost connection shows; until then asyncio takes bytes that go nowhere
            if request.transport is None or request.transport.is_closing():
                break
            request.app[SENT][0] += 1 << 20
    return response


async def _announce_too_much(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(MAX_UPLOAD_BYTES + 1)})
    await response.prepare(request)
    await response.write(b"a")
    return response


def _send_gzip(_: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(bytes(1 << 20)), headers={"Content-Encoding": "gzip"})


@pytest.mark.asyncio
@pytest.mark.may_block("the server in this process reads its certificate")
async def test_a_fetch_follows_no_redirect_and_stops_at_the_size_limit(certificate: Path, free_port: int) -> None:
    def answer(request: web.Request) -> object:
        if request.path == "/away":
            raise web.HTTPFound("https://media.discordapp.net/cat.png")
        if request.path == "/cat.png":
            assert request.headers["Accept-Encoding"] == "identity"
            return web.Response(body=b"a cat")
        send_functions = {"/long": _send_too_much, "/announced": _announce_too_much, "/squeezed": _send_gzip}
        return send_functions[request.path](request) if request.path in send_functions else web.Response(status=404)

    async with serve_as_discord(answer, certificate, free_port) as (session, resolver, sent_bytes):
        assert await fetch_file(session, "https://cdn.discordapp.com/cat.png?ex=1") == b"a cat"
        for path, match, status in (
            ("away", "cannot be fetched", 404),
            ("gone", "cannot be fetched", 404),
            ("squeezed", "cannot be fetched", 404),
            ("long", "up to 16 MiB", 413),
            ("announced", "up to 16 MiB", 413),
        ):
            with pytest.raises(UserError, match=match) as error:
                await fetch_file(session, f"https://cdn.discordapp.com/{path}")
            assert error.value.status == status
        for url in (*DECEPTIVE_URLS, f"{OWN}/api/jobs/{JOB}/pictures/1.png"):
            with pytest.raises(UserError, match="Only pictures"):
                await fetch_file(session, url)
        assert sent_bytes[0] < 3 * MAX_UPLOAD_BYTES, "the server never sent the rest"
        assert set(resolver.asked_hosts) == {"cdn.discordapp.com"}, "no other name was looked up"


@pytest.mark.asyncio
@pytest.mark.may_block("the server in this process reads its certificate")
async def test_a_fetch_without_an_answer_fails_in_time(
    certificate: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer_never(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    monkeypatch.setattr(image_links, "FETCH_TIMEOUT", 0.3)
    async with serve_as_discord(answer_never, certificate, free_port) as (session, _, _):
        with pytest.raises(UserError, match="cannot be fetched"):
            await fetch_file(session, ATTACHED)


@pytest.mark.asyncio
async def test_a_server_without_a_trusted_certificate_is_refused(free_port: int) -> None:
    """No server listens there, or its certificate is untrusted. Neither counts as Discord."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=LocalResolver(free_port))) as session:
        with pytest.raises(UserError, match="cannot be fetched"):
            await fetch_file(session, ATTACHED)
