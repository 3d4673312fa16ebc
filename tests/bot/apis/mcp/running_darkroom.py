"""A running Darkroom whose worker paints discs, one for the module, and the SDK's own client to `darkroom mcp`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from httpx2 import AsyncClient
from mcp import Client, StdioServerParameters
from mcp.client.session import MessageHandlerFnT
from mcp.client.streamable_http import streamable_http_client

from bot.apis.mcp.access import DarkroomAccess
from bot.apis.mcp.server import build_server
from bot.apis.mcp.transports import build_http_app, build_http_server
from bot.app.settings import load_settings
from bot.app.wiring import open_app
from bot.cli.instance_lock import RunningInstance, announce_instance
from bot.services import Services
from bot.web.app import build_app, run_server
from bot.web.auth import HostPolicy, terminal_key
from engine.bus.embedded_broker import Broker
from shared.clock import wait_until
from shared.migrated_database import put_migrated_database
from shared.web_server import connect, start_worker
from tools.painter import PaintingWorker

ROOT = Path(__file__).parents[4]


@dataclass
class Darkroom:
    """A running Darkroom: its data folder, address, worker and services, and the terminal's key."""

    data: Path
    url: str
    worker: PaintingWorker
    services: Services
    key: str

    def go_on(self) -> None:
        """Ends the pause of the worker."""
        self.worker.pause_step = None
        self.worker.step_gate.set()

    def open_stdio(self, mode: str = "auto", **environment: str) -> Client:
        """`darkroom mcp` as a process of its own, as assistants start it."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "DARKROOM_DATA": str(self.data), **environment}
        server = StdioServerParameters(command=sys.executable, args=["-m", "bot", "mcp"], env=env, cwd=ROOT)
        return Client(server, mode=mode)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_migrated_database(tmp_path_factory.mktemp("data"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def darkroom(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Darkroom]:
    settings = await asyncio.to_thread(
        load_settings, data=data_folder, host="127.0.0.1", discord_token=None, running=20, queued=100, cost_day=1e6
    )
    async with AsyncExitStack() as parts:
        broker = await parts.enter_async_context(Broker(tmp_path_factory.mktemp("nats"), token="a-token-for-tests"))
        bot_app = await parts.enter_async_context(open_app(settings, await connect(parts, broker)))
        app = await asyncio.to_thread(build_app, settings, bot_app.services, metrics_snapshot=bot_app.metrics_page)
        port = await parts.enter_async_context(run_server(app, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(announce_instance, data_folder, RunningInstance(url, os.getpid()))
        worker: PaintingWorker = await parts.enter_async_context(start_worker(broker))
        worker.speed = 0.001
        await wait_until(lambda: len(bot_app.services.live_workers()) >= 1)
        key = await asyncio.to_thread(terminal_key, data_folder)
        yield Darkroom(data_folder, url, worker, bot_app.services, key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http_address(darkroom: Darkroom) -> AsyncIterator[str]:
    """The address of `darkroom mcp --http` for this Darkroom."""
    access = DarkroomAccess(darkroom.data, is_shared=True)
    app = build_http_app(await asyncio.to_thread(build_server, access), HostPolicy.from_settings("127.0.0.1", "", ()))
    server = build_http_server(app, "127.0.0.1", 0)
    task = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    server.should_exit = True
    await task


@asynccontextmanager
async def open_http(
    address: str, key: str = "", mode: str = "auto", on_message: MessageHandlerFnT | None = None
) -> AsyncGenerator[Client]:
    """A client over streamable HTTP that sends this key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with AsyncClient(headers=headers, timeout=60) as http_client:
        transport = streamable_http_client(address, http_client=http_client)
        async with Client(transport, mode=mode, message_handler=on_message) as client:
            yield client
