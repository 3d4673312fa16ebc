"""Grids are composed at most two at a time, once each, and the cache has limits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from bot.web import media
from bot.web.media import GridCache

pytestmark = pytest.mark.asyncio


class Composer:
    """Replaces the real composer: it is slow, counts its calls, and returns about 100 bytes."""

    def __init__(self) -> None:
        self.made_grids: list[str] = []
        self.now = self.max_running = 0
        self._lock = threading.Lock()

    def compose(self, pictures: Sequence[bytes], cell: int) -> bytes:
        with self._lock:
            self.now += 1
            self.max_running = max(self.max_running, self.now)
        time.sleep(0.05)
        with self._lock:
            self.now -= 1
            self.made_grids.append(pictures[0].decode())
        return pictures[0].ljust(100) + bytes(cell)


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> Composer:
    one = Composer()
    monkeypatch.setattr(media.grid, "compose", one.compose)
    return one


async def fetch_grid(cache: GridCache, name: str) -> bytes:
    async def pictures() -> list[bytes]:
        return [name.encode()]

    return await cache.get((name,), pictures)


async def test_at_most_two_grids_are_composed_at_a_time_and_each_once(composer: Composer) -> None:
    cache = GridCache(0)
    names = [*"abcdef"] * 3
    results = await asyncio.gather(*(fetch_grid(cache, name) for name in names))
    assert [one.strip().decode() for one in results] == names
    assert sorted(composer.made_grids) == [*"abcdef"]
    assert composer.max_running <= media.MAX_CONCURRENT


@pytest.mark.parametrize(("bound", "value"), [("MAX_PICTURES", 2), ("MAX_BYTES", 250)])
async def test_the_least_recently_used_grid_is_dropped(
    composer: Composer, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(media, bound, value)
    cache = GridCache(0)
    for name in "abac":  # `b` is dropped
        await fetch_grid(cache, name)
    for name in "acb":
        await fetch_grid(cache, name)
    assert composer.made_grids == [*"abcb"]


async def test_a_grid_that_failed_is_tried_again(composer: Composer) -> None:
    async def fail() -> list[bytes]:
        raise OSError("the disk is away")

    cache = GridCache(0)
    for _ in range(media.MAX_CONCURRENT + 1):
        with pytest.raises(OSError, match="away"):
            await cache.get(("a",), fail)
    assert await fetch_grid(cache, "a")
