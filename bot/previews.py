"""Live previews: frames from the workers to the feed, and the wish for them to the workers. No SQL a frame.

How far a worker is with a model that it fetches into memory goes the same way, watched or not: it is a few bytes.

Frames of unknown jobs, of older epochs, or that are not a JPEG are dropped: a moment later they are worth nothing.
Where a job is checked they are blurred here, before any front end has them, until the check has passed their image.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from bot.feed import Developing, Feed, Readying
from bot.images.blur import MAX_FRAME, blurred
from bot.images.pixels import Unreadable
from bot.queue.board import Board, Run
from engine.bus import Bus, Unreachable
from engine.job import Frame

log = logging.getLogger(__name__)

WANT_SECONDS = 5.0  # a worker believes a wish for ten
JPEG = b"\xff\xd8\xff"


class Previews:
    """Run `show`, `tell` and `want` as tasks."""

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
                    if run is None or (picture := await _for_all(frame, run)) is None:
                        continue
                    if frame.job in self._board.runs:  # else it ended meanwhile
                        pictures = {frame.image: picture}
                        step = max(run.step, frame.step)
                        self._feed.publish(Developing(frame.job, step, frame.of, frame.seconds_left, pictures))
            except Unreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def tell(self) -> None:
        """How far each model is that a job waits for goes into the feed."""
        while True:
            try:
                async for loading in self._bus.loadings():
                    if self._board.loading(loading, self._clock()) is not None:
                        size = self._bus.progress.size(loading.model)
                        self._feed.publish(Readying(loading.job, loading.model, loading.done, size))
            except Unreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def want(self) -> None:
        """Say which jobs are watched: at once when somebody joins, and again and again while they stay."""
        joined, renewed = None, -math.inf
        while True:
            now = time.monotonic()
            if joined is None or now - renewed >= WANT_SECONDS:
                joined, renewed = set(self._board.runs), now
            try:
                for job in [job for job in joined if job in self._board.runs and self._feed.watched(job)]:
                    await self._bus.want(job)
            except Unreachable as error:
                log.warning("previews: %s", error)
            joined = await self._next_joined(renewed + WANT_SECONDS - time.monotonic())

    async def _next_joined(self, seconds: float) -> set[str] | None:
        """Whose jobs somebody begins to look at within so many seconds."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._feed.joined.wait()
        except TimeoutError:
            return set()
        return self._feed.take_joined()


async def _for_all(frame: Frame, run: Run) -> bytes | None:
    """The frame as everybody may see it; None where it must not be shown and cannot be read."""
    if not run.record.check or frame.verdict == "passed":
        return frame.picture
    try:
        return await asyncio.to_thread(blurred, frame.picture, "JPEG", max_pixels=MAX_FRAME)
    except Unreadable as error:
        log.warning("job %s: a preview is left out: %s", frame.job, error)
        return None
