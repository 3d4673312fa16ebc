"""Films over HTTP: work that nobody waits for any more is dropped, and a visitor's films delay nobody else's."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from bot.domain.dto import Member
from bot.pictures import ladder_film

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio


class SlowFilms:
    """Renders every film of noise in 0.3 s, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, *_: Any, **__: Any) -> bytes:
        with self._lock:
            self.count += 1
            number = self.count
        time.sleep(0.3)
        return b"a film %d" % number


@pytest.fixture
def films(monkeypatch: pytest.MonkeyPatch) -> SlowFilms:
    slow_films = SlowFilms()
    for name in ("render_dissolve", "render_dissolve_and_back"):
        monkeypatch.setattr(ladder_film, name, slow_films)
    return slow_films


async def finish_job(server: WebServer) -> str:
    job = await server.imagine("a lamp", count=4)
    assert (await server.wait_for_end(job))["state"] == "finished"
    return job


def film_paths(job: str) -> list[str]:
    """The addresses of 16 films."""
    kinds = ("dissolve", "round-trip")
    return [f"/api/jobs/{job}/{kind}/{n}.{form}" for kind in kinds for n in range(1, 5) for form in ("webp", "gif")]


async def test_closed_requests_cost_little_and_delay_nobody(server: WebServer, films: SlowFilms) -> None:
    job = await finish_job(server)
    paths = film_paths(job)
    for path in paths[1:]:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        await writer.drain()
        writer.close()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as other:
        async with other.get(server.url):  # gets a cookie
            pass
        start = time.perf_counter()
        async with other.get(server.url + paths[0]) as answer:
            assert answer.status == 200
        assert time.perf_counter() - start < 1.5, "one film of its own, and one before it"
    await asyncio.sleep(1.0)
    assert films.count <= 4


async def test_a_visitor_with_too_many_films_is_told_when_to_come_again(server: WebServer, films: SlowFilms) -> None:
    paths = film_paths(await finish_job(server))

    async def fetch(path: str) -> tuple[int, str]:
        async with server.client.get(server.url + path) as answer:
            return answer.status, answer.headers.get("Retry-After", "")

    answers = await asyncio.gather(*(fetch(path) for path in paths))
    assert [status for status, _ in answers].count(200) == 12
    refusals = [wait for status, wait in answers if status == 429]
    assert len(refusals) == 4
    assert all(1 <= int(wait) <= 5 for wait in refusals)


async def test_a_film_is_made_once_and_is_deleted_with_its_job(server: WebServer, films: SlowFilms) -> None:
    job = await finish_job(server)
    path = film_paths(job)[0]
    for _ in range(2):
        async with server.client.get(server.url + path) as answer:
            assert await answer.read() == b"a film 1"
    folder = server.settings.data / "films"
    assert len(list(folder.iterdir())) == 1
    await server.services.moderation.delete_pictures(job, Member("local:terminal", "Terminal", "local"))
    assert list(folder.iterdir()) == []
