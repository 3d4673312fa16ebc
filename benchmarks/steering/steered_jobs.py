"""Eight long jobs that run at once and are steered over HTTP: how soon they follow a press, and what that costs.

A press is a request over HTTP. Its answer says from which step on the change holds; the worker gives it once that step
is next, and the page hears of it. So the answer's arrival is later than the begin of the step, if anything. For the
cost, windows with and without changes take turns on the same jobs, in an order that evens out a slow drift. One page is
open; its live stream is decoded as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import percentile
from bot.domain.errors import UserError
from bot.domain.job_states import is_end

JOBS = 8
STEPS = 1000
MOST_CHANGES = 60  # of a job, which takes 64
LAST_SHARE = 0.9  # of a job's steps: after it no change is asked for
START_SECONDS = 120.0
WORDS = ("in snow", "at night", "by the sea", "red", "in a meadow", "smiling", "old", "in the rain")


@dataclass
class RunningJobs:
    """Keeps `JOBS` jobs running. `changes`: how many each was asked for."""

    client: aiohttp.ClientSession
    reader: PageReader
    rng: Random
    changes: dict[str, int] = field(default_factory=dict[str, int])
    refused_count: int = 0
    _turn: int = 0

    async def fill(self) -> None:
        """Cancel jobs that are nearly over or have been changed enough, and wait until `JOBS` jobs run.

        Raises `UserError` if they do not: the device may be too small, or busy with other things.
        """
        for job in list(self.changes):
            is_nearly_over = self.reader.latest_step(job) > LAST_SHARE * STEPS
            if job in self.reader.ended or is_nearly_over or self.changes[job] >= MOST_CHANGES:
                await self._cancel(job)
        while len(self.changes) < JOBS:
            self.changes[await self._submit()] = 0
        if not await self.reader.wait_until(lambda: all(map(self._is_running, self.changes)), START_SECONDS):
            running_count = sum(map(self._is_running, self.changes))
            raise UserError(f"Only {running_count} of {JOBS} jobs run at once here within {START_SECONDS:.0f} s.")

    def _is_running(self, job: str) -> bool:
        return self.reader.latest_step(job) > 0 and job not in self.reader.ended

    async def clear(self) -> None:
        """Cancel all jobs."""
        for job in list(self.changes):
            await self._cancel(job)

    async def _submit(self) -> str:
        """Two parts mixed into one text, guidance and evaluation in every step: no change changes a step's rows."""
        body = {"prompt": "fox::1 terrier::1", "mix": True, "steps": STEPS, "evaluations": "all", "count": 1}
        body |= {"interval": "0-1", "guidance": 4.0}
        async with self.client.post("/api/jobs", json=body) as response:
            response.raise_for_status()
            return str((await response.json())["id"])

    async def _cancel(self, job: str) -> None:
        del self.changes[job]
        async with self.client.delete(f"/api/jobs/{job}"):
            pass

    def choose_job(self) -> str:
        """Return the job that was changed least."""
        return min(self.changes, key=lambda job: (self.changes[job], job))

    async def steer(self, job: str) -> int | None:
        """Change a job, in turn its weights, its words and its guidance; return the change's number, None: refused."""
        self.changes[job] += 1
        async with self.client.post(f"/api/jobs/{job}/amend", json=self._draw_change()) as response:
            if response.status != 202:
                self.refused_count += 1
                return None
            return int((await response.json())["amendments"][-1]["number"])

    def _draw_change(self) -> dict[str, Any]:
        self._turn, share = self._turn + 1, round(self.rng.uniform(0.1, 0.9), 3)
        match self._turn % 3:
            case 0:
                return {"weights": {"1": share, "2": round(1 - share, 3)}}
            case 1:
                return {"prompt": f"fox, {self.rng.choice(WORDS)}::{share} terrier::{1 - share:.3f}"}
            case _:
                return {"guidance": round(self.rng.uniform(2, 8), 3)}

    async def steer_all(self, seconds: float) -> int:
        """Change every job once a second, spread over the second, for so long; return how many changes were asked."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        tasks = list[asyncio.Task[int | None]]()
        for turn in itertools.count():
            at = start + turn / JOBS
            if at >= start + seconds:
                break
            await asyncio.sleep(at - loop.time())
            tasks.append(asyncio.create_task(self.steer([*self.changes][turn % len(self.changes)])))
        return sum(number is not None for number in await asyncio.gather(*tasks))


PRESSES = 120
QUICK_PRESSES = 12
STEP_NAME = "press → the first step that follows, p99 ÷ (one step + 50 ms)"
FRAME_NAME = "press → the first frame that shows it on the page, p99"
ROW_NAMES = (STEP_NAME, FRAME_NAME)
ALLOWANCE_SECONDS = 0.05
TIMEOUT_SECONDS = 30.0  # after which a press counts as never followed
PAUSE_SECONDS = (0.05, 0.5)  # between two presses: at any moment of a step


@dataclass(frozen=True)
class Response:
    """The seconds from a press until its step is next, and until the page has a frame that shows it."""

    step_seconds: float
    frame_seconds: float


async def measure_responses(jobs: RunningJobs, rng: Random, *, quick: bool) -> list[FigureRow]:
    """Press again and again, each time on another of the running jobs."""
    planned = QUICK_PRESSES if quick else PRESSES
    responses = list[Response]()
    start = time.monotonic()
    for _ in range(planned):
        await jobs.fill()
        await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))
        response = await _press(jobs, jobs.reader)
        if response is not None:
            responses.append(response)
    paces = [jobs.reader.measure_pace(job, start, time.monotonic()) for job in jobs.changes]
    return build_rows(responses, [1 / pace for pace in paces if pace], planned)


async def _press(jobs: RunningJobs, reader: PageReader) -> Response | None:
    job = jobs.choose_job()
    start = time.monotonic()
    number = await jobs.steer(job)
    if number is None or not await reader.wait_until(lambda: (job, number) in reader.answers, TIMEOUT_SECONDS):
        return None
    answered_at, step = reader.answers[job, number]
    if step is None:
        return None
    await reader.wait_until(lambda: reader.find_frame_after(job, step) is not None, TIMEOUT_SECONDS)
    seen_at = reader.find_frame_after(job, step)
    return None if seen_at is None else Response(answered_at - start, seen_at - start)


def build_rows(responses: list[Response], step_times: list[float], planned: int) -> list[FigureRow]:
    """Return the rows. `step_times`: seconds of a step of each job."""
    step_seconds = statistics.median(step_times) if step_times else 0.0
    waits = [each.step_seconds for each in responses]
    frames = [each.frame_seconds for each in responses]
    slowest = percentile(waits, 0.99)
    note = (
        f"{JOBS} jobs run, a step takes {1000 * step_seconds:.0f} ms; p50 {1000 * percentile(waits, 0.5):.0f} ms, "
        f"p99 {1000 * slowest:.0f} ms until the page has the answer"
    )
    ratio = slowest / (step_seconds + ALLOWANCE_SECONDS)
    frame_note = f"p50 {percentile(frames, 0.5):.2f} s; {JOBS} jobs on the page"
    samples = len(responses) if step_times else 0
    return [
        FigureRow(STEP_NAME, ratio, "≤ 1", "", note, samples, planned),
        FigureRow(FRAME_NAME, percentile(frames, 0.99), "≤ 0.5", "s", frame_note, samples, planned),
    ]


THROUGHPUT_NAME = "throughput, every job steered once a second ÷ none"
ORDER = (False, True, True, False, False, True)  # whether a window has changes
QUICK_ORDER = (False, True)
WINDOW_SECONDS = 16.0
QUICK_SECONDS = 10.0


async def measure_steered_throughput(jobs: RunningJobs, *, quick: bool) -> FigureRow:
    """Compare the windows' sums of steps a second."""
    await jobs.clear()
    paces: dict[bool, list[float]] = {False: [], True: []}
    asked_count = 0
    order = QUICK_ORDER if quick else ORDER
    seconds = QUICK_SECONDS if quick else WINDOW_SECONDS
    for is_steered in order:
        await jobs.fill()
        start = time.monotonic()
        if is_steered:
            asked_count += await jobs.steer_all(seconds)
        await asyncio.sleep(start + seconds - time.monotonic())
        paces[is_steered] += _measure_paces(jobs, start, start + seconds)
    return build_row(paces[True], paces[False], asked_count, len(order) * JOBS)


def _measure_paces(jobs: RunningJobs, start: float, end: float) -> list[float]:
    paces = (jobs.reader.measure_pace(job, start, end) for job in jobs.changes)
    return [pace for pace in paces if pace is not None]


def build_row(steered: Sequence[float], unsteered: Sequence[float], asked_count: int, planned: int) -> FigureRow:
    """Return the row of the jobs' steps a second with and without changes, one for each job and window."""
    rates = [sum(paces) / max(1, len(paces)) * JOBS for paces in (steered, unsteered)]
    note = f"{rates[0]:.1f} ÷ {rates[1]:.1f} steps a second of {JOBS} jobs; {asked_count} changes"
    samples = len(steered) + len(unsteered) if steered and unsteered else 0
    ratio = rates[0] / rates[1] if rates[1] else None
    return FigureRow(THROUGHPUT_NAME, ratio, "≥ 0.95", "×", note, samples, planned)


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
