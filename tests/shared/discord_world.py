"""The whole app for the Discord tests: real SQLite, nats-server and services. The worker paints solid colours."""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import discord
import pytest
import simcord
from blockbuster import BlockBuster

from bot.app.settings import load_settings
from bot.app.wiring import open_app
from bot.discord.delivery.courier import Courier
from bot.discord.delivery.discord_api import MessageClient
from bot.discord.start import RunningClient
from bot.pictures.uploads.image_links import FileUnavailable
from bot.policy.limits import TokenBuckets
from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from shared.migrated_database import put_migrated_database
from tools.painter import PaintingWorker, cancel_task

if TYPE_CHECKING:
    from simcord.actors import MemberActor
    from simcord.builders import ChannelHandle, GuildHandle
    from simcord.results import InteractionResult

    from bot.app.wiring import App
    from bot.jobs.views import Deliveries
    from bot.services import Services

mimetypes.init()  # reads its files now, not at the first upload to the simulated Discord


class Uploads:
    """Downloads from the simulated Discord; `extra_files` adds files by their real URLs."""

    def __init__(self) -> None:
        self.env: simcord.Env | None = None
        self.extra_files: dict[str, bytes] = {}
        self.fetched_urls: list[str] = []

    async def __call__(self, url: str, max_bytes: int) -> bytes:
        self.fetched_urls.append(url)
        content = self.extra_files.get(url) or (self.env.backend.cdn.get(url) if self.env else None)
        if content is None:
            raise FileUnavailable
        assert len(content) <= max_bytes
        return content


@dataclass
class World:
    """One server with two members, the bot in it, and the whole app behind the bot."""

    app: App
    client: RunningClient
    painter: PaintingWorker
    folder: Path
    uploads: Uploads = field(default_factory=Uploads)
    env: simcord.Env = field(init=False)
    guild: GuildHandle = field(init=False)
    channel: ChannelHandle = field(init=False)
    alice: MemberActor = field(init=False)
    bob: MemberActor = field(init=False)
    courier: asyncio.Task[None] = field(init=False)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def create_guild(self, env: simcord.Env) -> None:
        self.env = self.uploads.env = env
        self.guild = env.create_guild()
        self.channel = self.guild.create_text_channel("pictures")
        self.alice, self.bob = (self.guild.add_member(env.create_user(name)) for name in ("alice", "bob"))

    async def start_worker(self) -> None:
        """Start the worker and wait until the app sees it."""
        self.tasks.append(asyncio.create_task(self.painter.run()))
        await self.wait_until(lambda: self.services.live_workers())

    async def close(self) -> None:
        for task in self.tasks:
            await cancel_task(task)

    @property
    def services(self) -> Services:
        return self.app.services

    @property
    def deliveries(self) -> Deliveries:
        return self.app.services.deliveries

    async def wait_until(self, condition: Callable[[], Any], seconds: float = 40.0) -> Any:
        """Wait until `condition` is true, and return it. A dead courier raises at once."""
        deadline = time.perf_counter() + seconds
        while not (result := condition()):
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.perf_counter() < deadline, f"not in {seconds} s"
            await asyncio.sleep(0.02)
        return result

    def message(self, message_id: int) -> discord.Message:
        return next(each for each in self.channel.history() if each.id == message_id)

    async def wait_for_end(self, result: InteractionResult) -> discord.Message:
        """Wait until the job is over, when no Cancel button is left, and return the answer's message."""
        assert result.response
        identity = result.response.id
        return await self.wait_until(lambda: (m := self.message(identity)) and "Cancel" not in self.labels(m) and m)

    @staticmethod
    def labels(message: Any) -> list[str]:
        """List the button labels of a message or of an interaction's response."""
        rows = [row if isinstance(row, dict) else row.to_dict() for row in message.components]
        return [button.get("label") or button["emoji"]["name"] for row in rows for button in row["components"]]

    def start_courier(self) -> None:
        """Start a courier for the client, outside the bot's scope and before the bot, as in `run_client`."""
        self.courier = asyncio.create_task(Courier(self.app.services, MessageClient(self.client)).run())
        self.tasks.append(self.courier)

    async def stop_courier(self) -> None:
        self.tasks.remove(self.courier)
        await cancel_task(self.courier)

    async def restart(self) -> None:
        """Kill the bot and start another."""
        if self.courier in self.tasks:
            await self.stop_courier()
        self.client = create_client(self.app.services, self.folder)
        self.start_courier()
        await self.env.restart_bot(self.client)


def create_client(services: Services, folder: Path) -> RunningClient:
    client = RunningClient(services, folder / "synced", shard_count=1)
    client.token_buckets = TokenBuckets(count(step=1000).__next__)  # tests press faster than people: each press is late
    return client


@asynccontextmanager
async def start_app(folder: Path, watch: BlockBuster, uploads: Uploads) -> AsyncIterator[tuple[App, PaintingWorker]]:
    """Open an app, and make a worker that does not run yet."""
    async with AsyncExitStack() as stack:
        watch.deactivate()  # opening the app may block: nothing else runs yet
        broker = await stack.enter_async_context(Broker(folder / "nats"))
        bus, worker_bus = [await Bus.connect(broker.url, broker.token) for _ in range(2)]
        for each in (bus, worker_bus):
            await each.declare()
            stack.push_async_callback(each.close)
        app = await stack.enter_async_context(open_app(load_settings(data=folder), bus, fetch_upload=uploads))
        watch.activate()
        yield app, PaintingWorker(worker_bus)


@asynccontextmanager
async def start_world(folder: Path, watch: BlockBuster, *, worker: bool = True) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        uploads = Uploads()
        app, painter = await stack.enter_async_context(start_app(folder, watch, uploads))
        client = create_client(app.services, folder)
        world = World(app, client, painter, folder, uploads)
        stack.push_async_callback(world.close)
        if worker:
            await world.start_worker()
        world.start_courier()
        world.create_guild(await stack.enter_async_context(simcord.run(client, settle_timeout=10.0)))
        yield world


@pytest.fixture
def open_world(tmp_path: Path, event_loop_stays_free: BlockBuster) -> Callable[..., Any]:
    """`async with open_world() as world`."""
    put_migrated_database(tmp_path)
    return lambda **options: start_world(tmp_path, event_loop_stays_free, **options)
