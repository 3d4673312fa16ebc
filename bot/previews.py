"""Live previews: frames from the workers to the feed, and requests for them to the workers. No SQL per frame.

Progress of model loading takes the same way, whether watched or not: it is a few bytes.

Frames of unknown jobs, of older epochs, or that are no JPEG are dropped: they would be stale in a moment anyway. Frames
of jobs with the picture check are blurred here, before any front end has them, until their image has passed.
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

WANT_SECONDS = 5.0  # a worker keeps a request for ten
JPEG = b"\xff\xd8\xff"


class Previews:
    """Run `show`, `tell` and `want` as tasks."""

    def __init__(self, bus: Bus, board: Board, feed: Feed, *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._board, self._feed, self._clock = bus, board, feed, clock

    async def show(self) -> None:
        """Publish every useful frame to the feed."""
        while True:
            try:
                async for frame in self._bus.frames():
                    if not frame.picture.startswith(JPEG):
                        continue
                    run = self._board.frame(frame, self._clock())
                    if run is None or (picture := await _for_all(frame, run)) is None:
                        continue
                    if frame.job in self._board.runs:  # it may have ended meanwhile
                        pictures = {frame.image: picture}
                        step = max(run.step, frame.step)
                        self._feed.publish(Developing(frame.job, step, frame.of, frame.seconds_left, pictures))
            except Unreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def tell(self) -> None:
        """Publish the loading progress of models that jobs wait for."""
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
        """Tell the workers which jobs are watched: at once when a viewer joins, then repeatedly while one stays."""
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
        """Wait up to `seconds` for viewers; return the jobs that they joined."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._feed.joined.wait()
        except TimeoutError:
            return set()
        return self._feed.take_joined()


async def _for_all(frame: Frame, run: Run) -> bytes | None:
    """Return the frame as everybody may see it; None if it must be blurred and cannot be read."""
    if not run.record.check or frame.verdict == "passed":
        return frame.picture
    try:
        return await asyncio.to_thread(blurred, frame.picture, "JPEG", max_pixels=MAX_FRAME)
    except Unreadable as error:
        log.warning("job %s: a preview is left out: %s", frame.job, error)
        return None
