"""Watches every job of a bot by its feed: when its first step was seen, how far it is, when it was over.

All times are of the monotonic clock. It subscribes to live previews, as an open page does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bot.feed import Developing, Feed, Settled
from bot.states import State

PATIENCE = 180.0


class Watch:
    """`shown`: when a job's first preview came, so a step was run, decoded, sent and received."""

    def __init__(self) -> None:
        self.shown: dict[str, float] = {}
        self.step: dict[str, int] = {}
        self.first: dict[str, int] = {}  # the step of a job's first preview
        self.ended: dict[str, tuple[float, State]] = {}
        self._news = asyncio.Event()

    async def follow(self, feed: Feed) -> None:
        """Follow the feed until it closes."""
        async with feed.subscribe() as moments:
            async for moment in moments:
                if isinstance(moment, Developing) and moment.frames:
                    self.shown.setdefault(moment.job, time.monotonic())
                    self.first.setdefault(moment.job, moment.step)
                    self.step[moment.job] = moment.step
                elif isinstance(moment, Settled):
                    self.ended[moment.job] = (time.monotonic(), moment.state)
                self._news.set()

    async def until(self, true: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until `true()` holds, checked at every event. Raise TimeoutError."""
        async with asyncio.timeout(seconds):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def end(self, job: str) -> float:
        """Return when a job was finished. Raise RuntimeError if it ended otherwise."""
        await self.until(lambda: job in self.ended)
        at, state = self.ended[job]
        if state != "finished":
            raise RuntimeError(f"A job of the benchmark was {state}.")
        return at


@asynccontextmanager
async def watching(feed: Feed) -> AsyncIterator[Watch]:
    """Yield a watch that follows the feed while the context lasts."""
    watch = Watch()
    task = asyncio.create_task(watch.follow(feed))
    await asyncio.sleep(0)  # it is subscribed from now on
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
