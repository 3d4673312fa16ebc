"""Visitors of the room: each sends requests with its own credentials, and every answer is counted.

Knows HTTP; nothing of the room's rules.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PROMPT = {"prompt": "a lamp --count 1", "steps": 8}
END_STATES = ("finished", "failed", "cancelled")
TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass
class Tally:
    """Everything that was tried, and what came back. Status 0: no answer, which holds too."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    server_errors: list[str] = field(default_factory=list[str])
    gained_rights: list[str] = field(default_factory=list[str])
    open_room_rights: list[str] = field(default_factory=list[str])  # gained from an open room, or from its days
    refused_rights: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])  # stages that broke off, and why

    @property
    def requests(self) -> int:
        return self.statuses.total()

    def count(self, status: int, what: str) -> None:
        self.statuses[status] += 1
        if status >= 500:
            self.server_errors.append(f"{status} {what}")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    cookie: str = ""  # as name=value, if one was set

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Visitor:
    """One visitor. `headers` hold its cookie or key."""

    name: str
    url: str
    tally: Tally
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Sends one request over a connection of its own. Of a stream only the beginning is read."""
        options: dict[str, Any] = {"headers": self.headers | {k.replace("_", "-"): v for k, v in headers.items()}}
        options |= {"data": body} if isinstance(body, (bytes, aiohttp.FormData)) else {"json": body} if body else {}
        answer = Answer(0, b"")
        try:
            async with (
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=TIMEOUT) as client,
                client.request(method, self.url + path, allow_redirects=False, **options) as response,
            ):
                is_stream = response.content_type == "text/event-stream"
                content = await (response.content.readany() if is_stream else response.read())
                cookie = response.headers.get("Set-Cookie", "").partition(";")[0]
                answer = Answer(response.status, content, cookie)
        except (aiohttp.ClientError, ValueError, ConnectionError, TimeoutError):
            pass
        self.tally.count(answer.status, f"{method} {path} as {self.name}")
        return answer

    async def send_patiently(self, method: str, path: str, body: object = None, attempts: int = 30) -> Answer:
        """Sends it again while the answer is 429, or none comes."""
        answer = Answer(0, b"")
        for attempt in range(attempts):
            answer = await self.send(method, path, body)
            if answer.status not in (0, 429):
                break
            await asyncio.sleep(0.2 + 0.1 * attempt)
        return answer

    async def sign_in(self, token: str) -> bool:
        """Exchanges a one-time token for a cookie."""
        answer = await self.send_patiently("POST", "/api/entrance", {"token": token})
        if answer.cookie:
            self.headers = {"Cookie": answer.cookie}
        return bool(answer.cookie)

    async def invite(self, name: str) -> Visitor:
        """Lets a guest in. Only the owner may."""
        answer = await self.send_patiently("POST", "/api/invitations")
        assert answer.status == 201, answer
        guest = Visitor(name, self.url, self.tally)
        assert await guest.sign_in(answer.json()["path"].partition("token=")[2])
        return guest

    async def draw(self, seconds: float = 60.0) -> str:
        """Asks for a picture, and waits until it is finished; returns the job."""
        answer = await self.send_patiently("POST", "/api/jobs", PROMPT)
        assert answer.status == 201, answer
        job = str(answer.json()["id"])
        async with asyncio.timeout(seconds):
            while (state := (await self.send_patiently("GET", f"/api/jobs/{job}")).json()["state"]) not in END_STATES:
                await asyncio.sleep(0.3)
        assert state == "finished", state
        return job
