"""`darkroom bench clients`: measures the APIs that other programs speak beside our own, on a simulated worker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import aiohttp

from benchmarks.queue.system.installation import (
    BenchSystem,
    JobWatch,
    make_member,
    open_client,
    open_system,
    watch_jobs,
)
from benchmarks.report.figure_row import FigureRow, make_parser, missing_rows, print_rows
from benchmarks.report.measures import jain_index
from bot.domain.errors import UserError

OVERHEAD_NAME = "a picture by OpenAI's API ÷ by POST /api/jobs"
PARTIAL_NAME = "a job's first step to the first streamed partial picture"
WEBUI_NAME = "a picture by AUTOMATIC1111's API ÷ by POST /api/jobs"
JAIN_NAME = "an OpenAI client beside a Discord member: Jain's index by cost"
ROW_NAMES = (OVERHEAD_NAME, WEBUI_NAME, PARTIAL_NAME, JAIN_NAME)
ROW_MS = 5.0  # of a simulated step, a row


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    arguments = make_parser("clients", __doc__, "fewer rounds, a shorter window").parse_args(args)
    try:
        rows = asyncio.run(measure(quick=arguments.quick))
    except UserError as error:
        rows = missing_rows(ROW_NAMES, error.sentence)
    print_rows(rows, as_json=arguments.json)
    return 0


async def measure(*, quick: bool) -> list[FigureRow]:
    """Return all rows. Raises `UserError` without an engine."""
    async with open_system(None) as system, open_client(system) as client, watch_jobs(system.app.feed) as watch:
        await system.workers.start("worker", row_ms=ROW_MS)
        return [
            await measure_overhead(client, OVERHEAD_NAME, draw_by_openai, quick=quick),
            await measure_overhead(client, WEBUI_NAME, draw_by_webui_api, quick=quick),
            await measure_first_partial(client, watch, quick=quick),
            await measure_fairness(client, system, watch, quick=quick),
        ]


Draw = Callable[[aiohttp.ClientSession], Awaitable[object]]
ROUNDS = 20
QUICK_ROUNDS = 5
STEPS = 20


async def measure_overhead(
    client: aiohttp.ClientSession, row_name: str, draw_by_foreign_api: Draw, *, quick: bool
) -> FigureRow:
    """Compare medians of both ways, which take turns."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    foreign = list[float]()
    own = list[float]()
    for _ in range(rounds + 1):
        for draw, seconds in ((draw_by_foreign_api, foreign), (draw_by_own_api, own)):
            start_time = time.monotonic()
            await draw(client)
            seconds.append(time.monotonic() - start_time)
    foreign_median, own_median = (statistics.median(seconds[1:]) for seconds in (foreign, own))
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
        while True:
            await draw_by_openai(client)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(ask_for_ever())


async def _read_event_names(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"event: "):
            yield line.decode().removeprefix("event: ").strip()


async def draw_by_webui_api(client: aiohttp.ClientSession) -> None:
    """Draw a picture, and decode it."""
    async with client.post("/sdapi/v1/txt2img", json={"prompt": "a lamp", "steps": STEPS}) as response:
        response.raise_for_status()
        answer = await response.json()
    assert base64.b64decode(answer["images"][0])


CONNECTIONS = 12  # of the client: more than run at once
MEMBER_JOBS = 400
WINDOW_SECONDS = 30.0
QUICK_SECONDS = 8.0
WARM_UP_SECONDS = 2.0


async def measure_fairness(
    client: aiohttp.ClientSession, system: BenchSystem, watch: JobWatch, *, quick: bool
) -> FigureRow:
    """Measure the device-seconds of both in a window."""
    member = make_member(1)
    member_jobs = {await system.imagine(f"a lamp --steps {STEPS} --count 1", member) for _ in range(MEMBER_JOBS)}
    flood = asyncio.create_task(flood_by_openai(client, CONNECTIONS))
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        before = await _measure_costs(system, watch, member_jobs)
        await asyncio.sleep(QUICK_SECONDS if quick else WINDOW_SECONDS)
        after = await _measure_costs(system, watch, member_jobs)
    finally:
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await flood
    costs = [end - start for start, end in zip(before, after, strict=True)]
    note = f"device-seconds: {costs[0]:.2f} of the client, {costs[1]:.2f} of the member"
    return FigureRow(JAIN_NAME, jain_index(costs), "≥ 0.99", "", note, sum(cost > 0 for cost in costs), 2)


async def _measure_costs(system: BenchSystem, watch: JobWatch, member_jobs: set[str]) -> tuple[float, float]:
    """Return the device-seconds so far of the client's jobs and of the member's."""
    client_jobs = (set(watch.latest_steps) | set(watch.ends)) - member_jobs
    client_cost = await system.measure_cost(watch, sorted(client_jobs))
    return client_cost, await system.measure_cost(watch, sorted(member_jobs))
