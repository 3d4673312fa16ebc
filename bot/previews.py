"""Live previews: frames from the workers to the feed, and the wish for them to the workers. No SQL a frame.

Frames of unknown jobs, of older epochs, or that are not a JPEG are dropped: a moment later they are worth nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bot.feed import Developing, Feed
from bot.queue.board import Board
from engine.bus import Bus, Unreachable

log = logging.getLogger(__name__)

WANT_SECONDS = 5.0  # a worker believes a wish for ten
JPEG = b"\xff\xd8\xff"


class Previews:
    """Run `show` and `want` as tasks."""

    def __init__(self, bus: Bus, board: Board, feed: Feed, *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._board, self._feed, self._clock = bus, board, feed, clock

    async def show(self) -> None:
        """Every frame that is still of use goes into the feed."""
        while True:
            try:
                async for frame in self._bus.frames():
                    if not frame.picture.startswith(JPEG):
                        continue
                    run = self._board.frame(frame, self._clock())
                    if run is not None:
                        pictures = {frame.image: frame.picture}
                        self._feed.publish(Developing(frame.job, run.step, frame.of, frame.seconds_left, pictures))
            except Unreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def want(self) -> None:
        """Say which jobs are watched: at once when somebody joins, and again and again while they stay."""
        while True:
            self._feed.joined.clear()
            try:
                for job in [job for job in self._board.runs if self._feed.watched(job)]:
                    await self._bus.want(job)
            except Unreachable as error:
                log.warning("previews: %s", error)
            try:
                async with asyncio.timeout(WANT_SECONDS):
                    await self._feed.joined.wait()
            except TimeoutError:
                continue
