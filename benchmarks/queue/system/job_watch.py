"""Watches every job of a bot by its feed: when its first preview came, how far it is, when it ended.

All times are of the monotonic clock. It subscribes to live previews, as an open page does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from bot.domain.events import Feed, JobEnded, JobProgress
from bot.domain.job_states import JobState

TIMEOUT_SECONDS = 180.0


class JobWatch:
    """The progress of every job. `first_preview_times`: when a job's first preview came; `first_step_times`: when the
    first sign of a step came, with a preview or without.
    """

    def __init__(self) -> None:
        self.first_preview_times: dict[str, float] = {}
        self.first_step_times: dict[str, float] = {}
        self.latest_steps: dict[str, int] = {}
        self.first_steps: dict[str, int] = {}  # the step of a job's first preview
        self.ends: dict[str, tuple[float, JobState]] = {}
        self._changed = asyncio.Event()

    async def follow(self, feed: Feed) -> None:
        """Follow the feed until it closes."""
        async with feed.subscribe() as events:
            async for event in events:
                if isinstance(event, JobProgress):
                    self.first_step_times.setdefault(event.job, time.monotonic())
                if isinstance(event, JobProgress) and event.frames:
                    self.first_preview_times.setdefault(event.job, time.monotonic())
                    self.first_steps.setdefault(event.job, event.step)
                    self.latest_steps[event.job] = event.step
                elif isinstance(event, JobEnded):
                    self.ends[event.job] = (time.monotonic(), event.state)
                self._changed.set()

    async def wait_until(self, condition: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until `condition()` holds, checked at every event. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_end(self, job: str) -> float:
        """Return when a job was finished. Raises RuntimeError if it ended otherwise."""
        await self.wait_until(lambda: job in self.ends)
        end_time, state = self.ends[job]
        if state != "finished":
            raise RuntimeError(f"A job of the benchmark was {state}.")
        return end_time


@asynccontextmanager
async def watch_jobs(feed: Feed) -> AsyncGenerator[JobWatch]:
    """Yield a watch that follows the feed while the context lasts."""
    watch = JobWatch()
    task = asyncio.create_task(watch.follow(feed))
    await asyncio.sleep(0)  # it is subscribed from now on
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
