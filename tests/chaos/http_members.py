"""Members who ask for pictures over HTTP, as careful clients: with an idempotency key, retrying until an answer comes.

Each accepted job is recorded in the promises before it counts. Some members cancel. Knows only the API.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from chaos.evidence import ENDS, Wish
from chaos.timeline import Promises

RETRY_DELAY = 0.3  # seconds before a request is sent again
ANSWER_TIMEOUT = aiohttp.ClientTimeout(total=12)  # more than the store's own patience
POLL_INTERVAL = 0.4  # seconds between two polls of a member's jobs
CANCELS = 0.15  # of all jobs


@dataclass(frozen=True)
class Room:
    """The web page that members use, their recipes, and the outcomes."""

    url: str
    model: str
    exact: bool
    wishes: Sequence[Wish]
    promises: Promises
    ends: dict[str, set[str]]
    refused: list[str]

    @classmethod
    def at(cls, url: str, model: str, wishes: Sequence[Wish], promises: Promises, *, exact: bool) -> Room:
        return cls(url, model, exact, wishes, promises, defaultdict(set), [])


class Member:
    """One visitor with a cookie. `asking` False: no more requests, but current ones still get their answer."""

    def __init__(self, name: str, room: Room, chance: random.Random, most: int = 2, cancels: float = CANCELS) -> None:
        self.name, self.room, self.chance, self.most, self.cancels = name, room, chance, most, cancels
        self.open: set[str] = set()
        self.asking = True
        self._serial = 0
        self._session: aiohttp.ClientSession | None = None
        self._cancels: set[asyncio.Task[None]] = set()

    async def live(self) -> None:
        """Sends requests until `asking` is False, and waits until all accepted jobs end."""
        async with self._open_session():
            while self.asking or self.open or self._cancels:
                if self.asking and len(self.open) < self.most:
                    await self.ask(self.chance.choice(list(self.room.wishes)))
                    await asyncio.sleep(self.chance.expovariate(4.0))
                else:
                    await asyncio.sleep(POLL_INTERVAL)
                await self._poll()

    async def make(self, wishes: Sequence[Wish]) -> dict[str, Wish]:
        """Requests each once and waits until all end. Leaves out refused ones."""
        async with self._open_session():
            jobs = {await self.ask(wish): wish for wish in wishes}
            while self.open:
                await asyncio.sleep(POLL_INTERVAL)
                await self._poll()
        return {job: wish for job, wish in jobs.items() if job is not None}

    @asynccontextmanager
    async def _open_session(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True), timeout=ANSWER_TIMEOUT
        ) as self._session:
            await self._retry_until(200, "GET", "/")
            yield

    async def ask(self, wish: Wish) -> str | None:
        """Sends a request; returns the id of the accepted job, or None if it was refused."""
        self._serial += 1
        body: dict[str, Any] = {"prompt": wish.prompt, "seed": wish.seed, "steps": wish.steps, "count": wish.count}
        body |= {"model": self.room.model, "exact": self.room.exact}
        status, accepted = await self._retry_until(201, "POST", "/api/jobs", body, key=f"{self.name}-{self._serial}")
        if status != 201:
            self.room.refused.append(f"{status} {accepted.get('error', '')}")
            await asyncio.sleep(RETRY_DELAY)
            return None
        job = str(accepted["id"])
        if job not in self.room.promises.known:
            self.room.promises.keep(job, wish, "web")
        self.open.add(job)
        if self.asking and self.chance.random() < self.cancels:
            task = asyncio.create_task(self._cancel(job, self.chance.uniform(0.0, 4.0)))
            self._cancels.add(task)
            task.add_done_callback(self._cancels.discard)
        return job

    async def _cancel(self, job: str, after: float) -> None:
        await asyncio.sleep(after)
        await self._retry_until(200, "DELETE", f"/api/jobs/{job}")

    async def _poll(self) -> None:
        for job in list(self.open):
            status, body = await self._send("GET", f"/api/jobs/{job}")
            if status == 200 and body["state"] in ENDS:
                self.room.ends[job].add(body["state"])
                self.open.discard(job)

    async def _retry_until(
        self, wanted: int, method: str, path: str, body: object = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """Retries until the answer has the expected status or is a client error."""
        while True:
            status, answer = await self._send(method, path, body, key)
            if status == wanted or 400 <= status < 500:
                return status, answer
            await asyncio.sleep(RETRY_DELAY)

    async def _send(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, dict[str, Any]]:
        """Sends one request. Status 0: no answer."""
        assert self._session
        headers = {"Idempotency-Key": key} if key else {}
        try:
            async with self._session.request(method, self.room.url + path, json=body, headers=headers) as answer:
                if answer.content_type != "application/json":
                    return answer.status, {}
                return answer.status, await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError, ConnectionError):
            return 0, {}
