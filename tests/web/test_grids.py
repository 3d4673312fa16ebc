"""Grids are composed at most two at a time, once each, and kept within bounds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from bot.web import grids
from bot.web.grids import Grids

pytestmark = pytest.mark.asyncio


class Composer:
    """In place of the true one: slow, and it counts. What it makes are 100 bytes."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.now = self.most = 0
        self._lock = threading.Lock()

    def compose(self, pictures: Sequence[bytes], cell: int) -> bytes:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self._lock:
            self.now -= 1
            self.made.append(pictures[0].decode())
        return pictures[0].ljust(100) + bytes(cell)


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch) -> Composer:
    one = Composer()
    monkeypatch.setattr(grids.grid, "compose", one.compose)
    return one


async def ask(kept: Grids, name: str) -> bytes:
    async def pictures() -> list[bytes]:
        return [name.encode()]

    return await kept.of((name,), pictures)


async def test_two_at_a_time_and_each_once(composer: Composer) -> None:
    kept = Grids(0)
    names = [*"abcdef"] * 3
    made = await asyncio.gather(*(ask(kept, name) for name in names))
    assert [one.strip().decode() for one in made] == names
    assert sorted(composer.made) == [*"abcdef"]
    assert composer.most <= grids.AT_ONCE


@pytest.mark.parametrize(("bound", "value"), [("MOST", 2), ("MOST_BYTES", 250)])
async def test_what_was_unasked_for_longest_goes(
    composer: Composer, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(grids, bound, value)
    kept = Grids(0)
    for name in "abac":  # `b` goes
        await ask(kept, name)
    for name in "acb":
        await ask(kept, name)
    assert composer.made == [*"abcb"]


async def test_what_could_not_be_made_is_tried_again(composer: Composer) -> None:
    async def lost() -> list[bytes]:
        raise OSError("the disk is away")

    kept = Grids(0)
    for _ in range(grids.AT_ONCE + 1):
        with pytest.raises(OSError, match="away"):
            await kept.of(("a",), lost)
    assert await ask(kept, "a")
