"""One open page's live stream, decoded as it comes: the frames of each job, the answers to changes, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bot.domain.job_states import is_end

EVENT_END = b"\r\n\r\n"
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30)


class PageReader:
    """`frames`: by job, each picture's arrival and its step, by the monotonic clock. `answers`: by job and number of a
    change, when the page was told of its answer, and from which step on it holds (None: refused).
    """

    def __init__(self) -> None:
        self.frames: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.answers: dict[tuple[str, int], tuple[float, int | None]] = {}
        self.refusals: list[str] = []
        self.ended: set[str] = set()
        self._changed = asyncio.Event()

    async def read_stream(self, client: aiohttp.ClientSession) -> None:
        """Read until cancelled."""
        async with client.get("/api/events", timeout=TIMEOUT) as response:
            response.raise_for_status()
            buffer = b""
            async for chunk in response.content.iter_any():
                *events, buffer = (buffer + chunk).split(EVENT_END)
                for event in events:
                    self.take_event(event, time.monotonic())

    def take_event(self, event: bytes, now: float) -> None:
        """Note one event of the stream."""
        name_line, _, data_line = event.partition(b"event: ")[2].partition(b"\r\n")
        payload: dict[str, Any] = json.loads(data_line.removeprefix(b"data: ")) if data_line else {}
        match name_line:
            case b"frame" if payload["frames"]:
                self.frames[payload["id"]].append((now, payload["step"]))
            case b"steered":
                self._note_change(payload["id"], payload["amendment"], now)
            case b"job" if is_end(payload["state"]):
                self.ended.add(payload["id"])
            case _:
                return
        self._changed.set()

    def _note_change(self, job: str, amendment: dict[str, Any], now: float) -> None:
        if amendment["state"] == "waiting":
            return
        self.answers.setdefault((job, amendment["number"]), (now, amendment["step"]))
        if amendment["state"] == "refused":
            self.refusals.append(amendment["reason"])

    def find_frame_after(self, job: str, step: int) -> float | None:
        """Return when the first picture came for which step `step` (counted from 0) was run; None: none has yet."""
        return next((at for at, steps_done in self.frames[job] if steps_done > step), None)

    def latest_step(self, job: str) -> int:
        return self.frames[job][-1][1] if self.frames[job] else 0

    def measure_pace(self, job: str, start: float, end: float) -> float | None:
        """Return a job's steps a second in a window, by least squares over frames and answers; None: too few of them.

        Both say how many steps were run by then.
        """
        answers = [(at, step) for (of_job, _), (at, step) in self.answers.items() if of_job == job and step is not None]
        seen = [(at, step) for at, step in (*self.frames[job], *answers) if start <= at <= end]
        if len({step for _, step in seen}) < 3:
            return None
        return statistics.linear_regression([at for at, _ in seen], [step for _, step in seen]).slope

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition()` holds, checked at every event; False if it takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return condition()


@asynccontextmanager
async def open_page(client: aiohttp.ClientSession) -> AsyncGenerator[PageReader]:
    """Yield the reader of a page that is open while the context lasts."""
    reader = PageReader()
    task = asyncio.create_task(reader.read_stream(client))
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
