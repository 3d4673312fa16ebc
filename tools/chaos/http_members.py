"""Members who ask for pictures over HTTP, as careful clients: with an idempotency key, retrying until an answer comes.

The accepted log records each job before it counts. Some members cancel, some steer. Knows only the API.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tools.chaos.evidence import ENDS, AskedAmendment, JobSpec, ToldAmendment
from tools.chaos.timeline import AcceptedLog

RETRY_DELAY = 0.3  # seconds before a request is sent again
ANSWER_TIMEOUT = aiohttp.ClientTimeout(total=12)  # more than the store's own patience
POLL_INTERVAL = 0.4  # seconds between two polls of a member's jobs
CANCEL_SHARE = 0.15  # of all jobs
STEER_SHARE = 0.5  # of all jobs
MAX_CHANGES = 5  # of a job that is steered
STEER_DELAY = 0.6  # seconds between two changes, at most
WORDS = ("at night", "in snow", "blue", "old", "by the sea")


def draw_change(rng: random.Random, count: int) -> dict[str, Any]:
    """Draws the body of a request to change a running job of so many images. Some are refused: images may be gone."""
    image = rng.randint(1, count)
    return rng.choice(
        (
            {"say": rng.choice(WORDS)},
            {"say": rng.choice(WORDS), "weight": 0.5},
            {"prompt": f"{rng.choice(WORDS)}::1 fox::2", "fade": rng.choice((0, 5))},
            {"negative": rng.choice(WORDS)},
            {"guidance": rng.choice((1.5, 4.0, 7.0))},
            {"keep": [image]},
            {"split": {"image": image, "into": rng.randint(2, 3)}},
        )
    )


@dataclass(frozen=True)
class WebTarget:
    """The web page that members use, their recipes, and the outcomes."""

    url: str
    model: str
    is_exact: bool
    specs: Sequence[JobSpec]
    accepted_log: AcceptedLog
    end_states: dict[str, set[str]]
    refusals: list[str]
    asked_amendments: list[AskedAmendment]
    told_amendments: set[ToldAmendment]

    @classmethod
    def create(
        cls, url: str, model: str, specs: Sequence[JobSpec], accepted_log: AcceptedLog, *, is_exact: bool
    ) -> WebTarget:
        return cls(url, model, is_exact, specs, accepted_log, defaultdict(set), [], [], set())


class HttpMember:
    """One visitor with a cookie. `is_requesting` False: no more requests, but current ones still get their answer."""

    def __init__(
        self,
        name: str,
        target: WebTarget,
        rng: random.Random,
        max_open: int = 2,
        cancel_share: float = CANCEL_SHARE,
        steer_share: float = STEER_SHARE,
    ) -> None:
        self.name = name
        self.target = target
        self.rng = rng
        self.max_open = max_open
        self.cancel_share = cancel_share
        self.steer_share = steer_share
        self.steered_jobs = set[str]()
        self.open_jobs: set[str] = set()
        self.is_requesting = True
        self._serial = 0
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sends requests until `is_requesting` is False, and waits until all accepted jobs end."""
        async with self._open_session():
            while self.is_requesting or self.open_jobs or self._tasks:
                if self.is_requesting and len(self.open_jobs) < self.max_open:
                    await self.request_job(self.rng.choice(list(self.target.specs)))
                    await asyncio.sleep(self.rng.expovariate(4.0))
                else:
                    await asyncio.sleep(POLL_INTERVAL)
                await self._poll()

    async def request_each_once(self, specs: Sequence[JobSpec]) -> dict[str, JobSpec]:
        """Requests each once and waits until all end. Leaves out refused ones."""
        async with self._open_session():
            jobs = {await self.request_job(spec): spec for spec in specs}
            while self.open_jobs:
                await asyncio.sleep(POLL_INTERVAL)
                await self._poll()
        return {job: spec for job, spec in jobs.items() if job is not None}

    @asynccontextmanager
    async def _open_session(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True), timeout=ANSWER_TIMEOUT
        ) as self._session:
            await self._retry_until(200, "GET", "/")
            yield

    async def request_job(self, spec: JobSpec) -> str | None:
        """Sends a request; returns the id of the accepted job, or None if it was refused."""
        self._serial += 1
        body: dict[str, Any] = {"prompt": spec.prompt, "seed": spec.seed, "steps": spec.steps, "count": spec.count}
        body |= {"model": self.target.model, "exact": self.target.is_exact}
        status, accepted = await self._retry_until(201, "POST", "/api/jobs", body, key=f"{self.name}-{self._serial}")
        if status != 201:
            self.target.refusals.append(f"{status} {accepted.get('error', '')}")
            await asyncio.sleep(RETRY_DELAY)
            return None
        job = str(accepted["id"])
        if job not in self.target.accepted_log.jobs:
            self.target.accepted_log.record(job, spec, "web")
        self.open_jobs.add(job)
        if self.is_requesting and self.rng.random() < self.cancel_share:
            self._spawn(self._cancel(job, self.rng.uniform(0.0, 4.0)))
        if self.is_requesting and self.rng.random() < self.steer_share:
            self.steered_jobs.add(job)
            self._spawn(self._steer(job, spec.count))
        return job

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, job: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._retry_until(200, "DELETE", f"/api/jobs/{job}")

    async def _steer(self, job: str, count: int) -> None:
        """Changes a job now and then, until it is over."""
        for number in range(self.rng.randint(1, MAX_CHANGES)):
            await asyncio.sleep(self.rng.uniform(0.0, STEER_DELAY))
            if job not in self.open_jobs:
                return
            key = f"{self.name}-{job}-{number}"
            body = draw_change(self.rng, count)
            status, answer = await self._retry_until(202, "POST", f"/api/jobs/{job}/amend", body, key=key)
            if status == 202:
                numbers = tuple(int(one["number"]) for one in answer["amendments"])
                self.target.asked_amendments.append(AskedAmendment(job, key, numbers))

    async def _note_amendments(self, job: str) -> None:
        """Notes which changes the API tells as made."""
        status, answer = await self._send("GET", f"/api/jobs/{job}/amendments")
        for one in answer["amendments"] if status == 200 else ():
            if one["state"] == "made":
                self.target.told_amendments.add(ToldAmendment(job, int(one["number"]), int(one["step"])))

    async def _poll(self) -> None:
        for job in list(self.open_jobs):
            if job in self.steered_jobs:
                await self._note_amendments(job)
            status, body = await self._send("GET", f"/api/jobs/{job}")
            if status == 200 and body["state"] in ENDS:
                self.target.end_states[job].add(body["state"])
                self.open_jobs.discard(job)

    async def _retry_until(
        self, expected_status: int, method: str, path: str, body: object = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Retries until the answer has the expected status or is a client error."""
        while True:
            status, answer = await self._send(method, path, body, key)
            if status == expected_status or 400 <= status < 500:
                return status, answer
            await asyncio.sleep(RETRY_DELAY)

    async def _send(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, dict[str, Any]]:
        """Sends one request. Status 0: no answer."""
        assert self._session
        headers = {"Idempotency-Key": key} if key else {}
        try:
            async with self._session.request(method, self.target.url + path, json=body, headers=headers) as answer:
                if answer.content_type != "application/json":
                    return answer.status, {}
                return answer.status, await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError, ConnectionError):
            return 0, {}
