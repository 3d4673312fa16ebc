"""Renderings: one at a time for each member, a bounded line for all, dropped when nobody waits, kept on disk."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.animation import Animation, encode_to_fit
from bot.pictures.film_cache import FilmCache
from bot.pictures.gallery import MAX_IN_LINE, MAX_OF_MEMBER, MAX_RUNNING, RETRY_SECONDS, RenderLine

pytestmark = pytest.mark.asyncio


class Rendering:
    """A rendering that takes a moment, and counts how many run at once."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds
        self.now = 0
        self.max_running = 0
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.now, self.count = self.now + 1, self.count + 1
            self.max_running = max(self.max_running, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1


async def render(line: RenderLine, member: str, rendering: Rendering) -> None:
    async with line.wait_turn(member):
        await line.render(rendering)


async def test_a_member_renders_one_at_a_time_and_all_together_a_few() -> None:
    line = RenderLine()
    anns = Rendering()
    everybodys = Rendering()
    await asyncio.gather(*(render(line, "ann", anns) for _ in range(5)))
    assert (anns.count, anns.max_running) == (5, 1)
    await asyncio.gather(*(render(line, f"member {n}", everybodys) for n in range(6)))
    assert (everybodys.count, everybodys.max_running) == (6, MAX_RUNNING)


async def test_a_members_many_films_delay_another_member_by_one_at_most() -> None:
    line = RenderLine()
    rendering = Rendering(0.2)
    anns = [asyncio.create_task(render(line, "ann", rendering)) for _ in range(MAX_OF_MEMBER)]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    await render(line, "bob", Rendering(0.0))
    assert time.perf_counter() - start < 0.3
    for task in anns:
        task.cancel()
    await asyncio.gather(*anns, return_exceptions=True)
    assert rendering.count <= 2, "those that nobody waits for were never begun"


async def test_the_line_is_bounded_and_says_when_to_come_again() -> None:
    line = RenderLine(clock=lambda: 1000.0)
    tasks = list[asyncio.Task[None]]()
    for n in range(MAX_IN_LINE):
        tasks.append(asyncio.create_task(render(line, f"member {n // MAX_OF_MEMBER}", Rendering(0.01))))
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(render(line, "another", Rendering(0.01))))  # a member's first always fits
    await asyncio.sleep(0)
    for member, sentence in (("member 0", "of yours"), ("another", "Too many films")):
        with pytest.raises(UserError, match=sentence) as error:
            await render(line, member, Rendering())
        assert (error.value.status, error.value.retry_at) == (429, 1000.0 + RETRY_SECONDS)
    await asyncio.gather(*tasks)
    await render(line, "another", Rendering())


async def test_a_rendering_that_nobody_waits_for_ends_at_its_next_frame() -> None:
    line = RenderLine()
    drawn = list[int]()

    def draw(index: int, size: tuple[int, int]) -> Image.Image:
        drawn.append(index)
        time.sleep(0.05)
        return Image.new("RGB", size)

    animation = Animation(40, (8, 8), draw)
    task = asyncio.create_task(line.render(lambda: encode_to_fit(animation)))
    while not drawn:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(drawn) < 5, "and its slot is free only now, so that the bound on threads holds"
    count = len(drawn)
    await asyncio.sleep(0.2)
    assert len(drawn) == count


async def test_films_are_kept_on_disk_within_a_bound_and_deleted_with_their_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    cache = FilmCache(folder, max_bytes=3500)
    await cache.put(("film", "a"), ["sha-a"], b"a" * 1000)
    await cache.put(("film", "b"), ["sha-a", "sha-b"], b"b" * 1000)
    await cache.put(("film", "c"), ["sha-c"], b"c" * 1000)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    cache = FilmCache(folder, max_bytes=3500)  # after a restart
    assert await cache.get(("film", "a")) == b"a" * 1000
    await cache.put(("film", "d"), ["sha-d"], b"d" * 1000)
    assert await cache.get(("film", "b")) is None, "the one used longest ago made room"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3500
    await cache.forget(["sha-a"])
    assert [await cache.get(("film", name)) is not None for name in "abcd"] == [False, False, True, True]
    assert len(list(folder.iterdir())) == 2
    await cache.put(("film", "large"), ["sha-e"], b"e" * 4000)
    assert await cache.get(("film", "large")) is None


async def test_a_damaged_film_counts_as_missing_and_a_full_disk_costs_a_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FilmCache(tmp_path / "films")
    await cache.put(("film",), ["sha"], b"a film")
    (file,) = (tmp_path / "films").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "films" / "torn.film").write_bytes(b"{")
    (tmp_path / "films" / "left.draft").write_bytes(b"half")
    assert await FilmCache(tmp_path / "films").get(("film",)) is None
    assert list((tmp_path / "films").iterdir()) == []

    def refuse(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    await cache.put(("film",), ["sha"], b"a film")
    assert await cache.get(("film",)) is None
    assert list((tmp_path / "films").iterdir()) == []
