"""A running Darkroom whose worker paints discs, one for the module, which the shell and `darkroom mcp` find."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from bot.app.settings import load_settings
from bot.app.wiring import open_app
from bot.cli.instance_lock import RunningInstance, announce_instance
from bot.services import Services
from bot.web.app import build_app, run_server
from bot.web.auth import terminal_key
from engine.bus.embedded_broker import Broker
from shared.clock import wait_until
from shared.migrated_database import put_migrated_database
from shared.web_server import connect, start_worker
from tools.painter import PaintingWorker

ROOT = Path(__file__).parents[2]


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
