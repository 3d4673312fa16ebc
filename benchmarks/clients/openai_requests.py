"""One picture by OpenAI's API and by Darkroom's own: how long each takes, from the request to the picture's bytes.

Both sides ask the same server over HTTP, and wait for the same simulated worker.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp

from benchmarks.queue.system.job_watch import JobWatch
from benchmarks.report.figure_row import FigureRow

OVERHEAD_NAME = "a picture by OpenAI's API ÷ by POST /api/jobs"
PARTIAL_NAME = "a job's first step to the first streamed partial picture"
Draw = Callable[[aiohttp.ClientSession], Awaitable[object]]
ROUNDS = 20
QUICK_ROUNDS = 5
STEPS = 20


async def measure_overhead(
    client: aiohttp.ClientSession, row_name: str, draw_by_foreign_api: Draw, *, quick: bool
) -> FigureRow:
    """Compare medians of both ways, which take turns."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    seconds: dict[str, list[float]] = {"foreign": [], "own": []}
    for _ in range(rounds + 1):
        for name, draw in (("foreign", draw_by_foreign_api), ("own", draw_by_own_api)):
            start_time = time.monotonic()
            await draw(client)
            seconds[name].append(time.monotonic() - start_time)
    foreign_median, own_median = (statistics.median(seconds[name][1:]) for name in ("foreign", "own"))
    note = f"{1000 * foreign_median:.0f} ms ÷ {1000 * own_median:.0f} ms; medians of {rounds}"
    return FigureRow(row_name, foreign_median / own_median, "≤ 1.05", "", note, rounds, rounds)


async def measure_first_partial(client: aiohttp.ClientSession, watch: JobWatch, *, quick: bool) -> FigureRow:
    """Measure from the first step that the bot hears of to the client's first partial picture, the slowest of all."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    waits = list[float]()
    body = {"prompt": "a lamp", "steps": 10 * STEPS, "stream": True, "partial_images": 1}
    for _ in range(rounds):
        jobs_before = set(watch.first_step_times)
        first_partial_time = 0.0
        async with client.post("/v1/images/generations", json=body) as response:
            response.raise_for_status()
            async for name in _read_event_names(response):
                if name.endswith(".partial_image") and not first_partial_time:
                    first_partial_time = time.monotonic()
        (job,) = set(watch.first_step_times) - jobs_before
        if first_partial_time:
            waits.append(first_partial_time - watch.first_step_times[job])
    note = f"the slowest of {len(waits)}; median {statistics.median(waits):.3f} s" if waits else ""
    return FigureRow(PARTIAL_NAME, max(waits, default=0.0), "≤ 1", "s", note, len(waits), rounds)


async def draw_by_openai(client: aiohttp.ClientSession) -> str:
    """Draw a picture; return its job."""
    async with client.post("/v1/images/generations", json={"prompt": "a lamp", "steps": STEPS}) as response:
        response.raise_for_status()
        answer = await response.json()
    assert base64.b64decode(answer["data"][0]["b64_json"])
    return str(answer["darkroom"]["jobs"][0]["id"])


async def draw_by_own_api(client: aiohttp.ClientSession) -> str:
    """Draw a picture as the page does: post the job, follow its events, fetch the picture; return the job."""
    async with client.post("/api/jobs", json={"prompt": "a lamp", "steps": STEPS, "count": 1}) as response:
        response.raise_for_status()
        job = str((await response.json())["id"])
    async with client.get(f"/api/jobs/{job}/events") as response:
        async for name in _read_event_names(response):
            if name == "finished":
                break
    async with client.get(f"/api/jobs/{job}/pictures/1.png") as response:
        response.raise_for_status()
        assert await response.read()
    return job


async def flood_by_openai(client: aiohttp.ClientSession, connections: int) -> None:
    """Keep this many requests under way until cancelled."""

    async def ask_for_ever() -> None:
        for _ in itertools.count():
            await draw_by_openai(client)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(ask_for_ever())


async def _read_event_names(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"event: "):
            yield line.decode().removeprefix("event: ").strip()
