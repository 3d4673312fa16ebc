"""Shared by the tests of backends: a broker, a server on loopback, and a worker between them. Imports no torch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.bus.embedded_broker import Broker
from engine.contract import JobCancelled, JobFailed, JobFinished, JobHandedBack
from engine.process.settings import BackendSettings
from engine.remote.connection_state import ConnectionState, MeasuredTimes
from engine.remote.http_client import BackendHttp, make_headers
from engine.remote.pictures import ChecksPictures, Verdicts
from engine.remote.worker import ROWS, BackendWorker, open_backend
from engine.worker.worker_life import WorkerProfile
from shared.bus_harness import JOB, LEASE, BusHarness
from shared.clock import wait_until

KEY = "sk-a-secret-key"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
ENDS = (JobFinished, JobFailed, JobCancelled, JobHandedBack)


class CollectingHarness(BusHarness):
    """Consumes results from its start to its end: to stop such a stream takes a second."""

    def __init__(self, broker: Broker, lease: float) -> None:
        super().__init__(broker, lease)
        self._results: defaultdict[str, list[Any]] = defaultdict(list)

    async def collect(self) -> None:
        """Acknowledges and keeps all results, for ever."""
        async for delivered in self.bot.consume_results():
            await delivered.ack()
            self._results[delivered.value.job].append(delivered.value)

    async def collect_results(self, job: str = JOB, seconds: float = 30.0) -> list[Any]:
        """Returns all results of a job once it has ended."""
        await wait_until(lambda: job in self._results and isinstance(self._results[job][-1], ENDS), seconds)
        return self._results[job]


@asynccontextmanager
async def open_bus(folder: Path, lease: float = LEASE) -> AsyncGenerator[CollectingHarness]:
    """A broker with the bot's end of the bus."""
    async with Broker(folder / "nats") as broker:
        harness = CollectingHarness(broker, lease)
        harness.bot = await harness.connect()
        await harness.bot.watch_workers()
        collecting = asyncio.create_task(harness.collect())
        yield harness
        collecting.cancel()
        for bus in harness.buses:
            await bus.close()


@asynccontextmanager
async def serve(app: web.Application, port: int | None = None) -> AsyncGenerator[str]:
    """A server on loopback, on a free port if none is given; yields its address."""
    async with TestServer(app, port=port) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def run_backend_worker(
    harness: BusHarness,
    settings: BackendSettings,
    folder: Path,
    name: str = "comfy",
    checks: ChecksPictures | None = None,
) -> AsyncGenerator[BackendWorker]:
    """A worker whose engine is this backend; it is drained at the end."""
    backend = await open_backend(settings, ())
    times = await asyncio.to_thread(MeasuredTimes, folder)
    state = ConnectionState(backend, settings.kind, times)
    profile = WorkerProfile(name, f"backend: {settings.kind}", ROWS)
    verdicts = Verdicts(checks)
    worker = BackendWorker(await harness.connect(), backend, profile, state, verdicts)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
        await backend.close()
        verdicts.close()


@asynccontextmanager
async def talk_to(answer: Answer) -> AsyncGenerator[BackendHttp]:
    """A backend that answers every request so, and a client of it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serve(app) as url:
        http = BackendHttp("The image server", url, make_headers(KEY))
        try:
            yield http
        finally:
            await http.close()
