"""`python -m tools.attack.honest_visitor URL COOKIE FILE`: looks at the page ten times a second, on new connections.

A process of its own, so that the attackers' work does not count as the room's. A line for each request: the clock, the
seconds until its answer was complete, the status (0: none within the timeout), and the address.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

PATHS = ("/healthz", "/", "/api/jobs", "/api/workers")
PAUSE = 0.1  # seconds between two requests
TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Visit:
    at: float  # seconds on the monotonic clock
    seconds: float
    status: int
    path: str


def read_visits(file: Path) -> list[Visit]:
    rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Visit(float(row[0]), float(row[1]), int(row[2]), row[3]) for row in rows if len(row) == 4]


async def visit_forever(url: str, cookie: str, file: Path) -> None:
    connector = aiohttp.TCPConnector(force_close=True)
    jar = aiohttp.DummyCookieJar()
    timeout = aiohttp.ClientTimeout(TIMEOUT)
    with file.open("a", buffering=1) as output:
        async with aiohttp.ClientSession(
            connector=connector, headers={"Cookie": cookie}, cookie_jar=jar, timeout=timeout
        ) as client:
            for path in itertools.cycle(PATHS):
                started_at = time.monotonic()
                status = 0
                try:
                    async with client.get(url + path) as answer:
                        await answer.read()
                        status = answer.status
                except (aiohttp.ClientError, ConnectionError, TimeoutError):
                    pass
                output.write(f"{started_at:.4f} {time.monotonic() - started_at:.5f} {status} {path}\n")
                await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    asyncio.run(visit_forever(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
