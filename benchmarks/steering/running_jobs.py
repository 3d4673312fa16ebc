"""The load: eight long jobs that run at once, and members who steer them over HTTP as the page does."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from benchmarks.steering.page_reader import PageReader
from bot.domain.errors import UserError

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
        body = {
            "prompt": "fox::1 terrier::1",
            "mix": True,
            "steps": STEPS,
            "evaluations": "all",
            "count": 1,
            "interval": "0-1",
            "guidance": 4.0,
        }
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
