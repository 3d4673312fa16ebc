"""Members who ask for pictures over HTTP, as careful clients do: with a key, again and again until they are answered.

What was accepted stands in the book of promises before it counts. Some cancel. Knows the API alone.
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

AGAIN = 0.3  # seconds before a request is sent again
ANSWER = aiohttp.ClientTimeout(total=12)  # more than the store's own patience
LOOK = 0.4  # seconds between two looks at one's jobs
CANCELS = 0.15  # of all jobs


@dataclass(frozen=True)
class Room:
    """Where they are, what they may ask for, and what became of it."""

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
    """One visitor, known by a cookie. `asking` False: no more wishes, but those under way are still answered."""

    def __init__(self, name: str, room: Room, chance: random.Random, most: int = 2, cancels: float = CANCELS) -> None:
        self.name, self.room, self.chance, self.most, self.cancels = name, room, chance, most, cancels
        self.open: set[str] = set()
        self.asking = True
        self._serial = 0
        self._session: aiohttp.ClientSession | None = None
        self._cancels: set[asyncio.Task[None]] = set()

    async def live(self) -> None:
        """Until nothing more is asked and all that was promised is over."""
        async with self._entered():
            while self.asking or self.open or self._cancels:
                if self.asking and len(self.open) < self.most:
                    await self.ask(self.chance.choice(list(self.room.wishes)))
                    await asyncio.sleep(self.chance.expovariate(4.0))
                else:
                    await asyncio.sleep(LOOK)
                await self._look()

    async def make(self, wishes: Sequence[Wish]) -> dict[str, Wish]:
        """Each of them once; returns when they are over. Those that were refused are left out."""
        async with self._entered():
            made = {await self.ask(wish): wish for wish in wishes}
            while self.open:
                await asyncio.sleep(LOOK)
                await self._look()
        return {job: wish for job, wish in made.items() if job is not None}

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), timeout=ANSWER) as self._session:
            await self._until(200, "GET", "/")
            yield

    async def ask(self, wish: Wish) -> str | None:
        """Returns its id once it was accepted; None where it was refused."""
        self._serial += 1
        body: dict[str, Any] = {"prompt": wish.prompt, "seed": wish.seed, "steps": wish.steps, "count": wish.count}
        body |= {"model": self.room.model, "exact": self.room.exact}
        status, told = await self._until(201, "POST", "/api/jobs", body, key=f"{self.name}-{self._serial}")
        if status != 201:
            self.room.refused.append(f"{status} {told.get('error', '')}")
            await asyncio.sleep(AGAIN)
            return None
        job = str(told["id"])
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
        await self._until(200, "DELETE", f"/api/jobs/{job}")

    async def _look(self) -> None:
        for job in list(self.open):
            status, told = await self._once("GET", f"/api/jobs/{job}")
            if status == 200 and told["state"] in ENDS:
                self.room.ends[job].add(told["state"])
                self.open.discard(job)

    async def _until(
        self, wanted: int, method: str, path: str, body: object = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """The answer, once there is one that says more than "not now"."""
        while True:
            status, told = await self._once(method, path, body, key)
            if status == wanted or 400 <= status < 500:
                return status, told
            await asyncio.sleep(AGAIN)

    async def _once(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, dict[str, Any]]:
        """0: no answer came."""
        assert self._session
        headers = {"Idempotency-Key": key} if key else {}
        try:
            async with self._session.request(method, self.room.url + path, json=body, headers=headers) as answer:
                if answer.content_type != "application/json":
                    return answer.status, {}
                return answer.status, await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError, ConnectionError):
            return 0, {}
