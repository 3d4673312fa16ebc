"""A whole house for the Discord tests: real SQLite, real nats-server, real studio, and a worker of solid colours.

The worker speaks the true wire contract and needs no torch. It runs as fast as the test lets it: `speed` seconds a
step, and stands still where it is told to.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import mimetypes
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import discord
import pytest
import simcord
from blockbuster import BlockBuster
from PIL import Image

from bot.chat.client import DarkroomClient
from bot.chat.courier import Courier
from bot.chat.mail import Mail
from bot.config import load
from bot.house import open_house
from engine.bus import Bus, Claim, Delivered
from engine.bus.broker import Broker
from engine.job import (
    Cancelled,
    Enlarge,
    Finished,
    Frame,
    Job,
    Ladder,
    Picture,
    Presence,
    Recipe,
    Rung,
    Started,
    Warm,
    encode,
)

if TYPE_CHECKING:
    from simcord.actors import MemberActor
    from simcord.builders import ChannelHandle, GuildHandle
    from simcord.results import InteractionResult

    from bot.desk import Desk
    from bot.house import House
    from bot.studio import Studio

mimetypes.init()  # reads files, else at the simulated Discord's first upload
STEPS = 20
WARM = Warm(
    name="embedded", revision="1", dtype="float32", size=64, multiple=8, max_pixels=256 * 256, tokens=64, steps=STEPS,
    sampler="ddpm", guidance=3.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
)  # fmt: skip


def colour(image: int, step: int) -> tuple[int, int, int]:
    """The image is told by the red channel, the step by the green one."""
    return 60 * image + 30, 10 * step + 20, 128


def step_of(pixel: tuple[int, ...]) -> int:
    return round((pixel[1] - 20) / 10)


def solid(image: int, step: int, form: str, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour(image, step)).save(out, form)
    return out.getvalue()


class Painter:
    """A worker: pulls, claims, paints a solid colour a step, hands in."""

    def __init__(self, bus: Bus, name: str = "painter", rows: int = 32) -> None:
        self.bus, self.name, self.rows = bus, name, rows
        self.speed = 0.01
        self.going = asyncio.Event()  # cleared: every job stands still where it is
        self.going.set()
        self.stand_at: int | None = None  # the step at which all jobs stand until `going` is set again
        self.here = asyncio.Event()
        self.here.set()
        self.done: list[str] = []
        self._wanted: set[str] = set()
        self._cancelled: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for keep_up in (self._listen_wants(), self._listen_cancels(), self._announce()):
                group.create_task(keep_up)
            while True:
                await self.here.wait()
                delivered = await self.bus.pull(["default"], timeout=0.5)
                if delivered is not None:
                    group.create_task(self._work(delivered))

    async def _listen_wants(self) -> None:
        async for job in self.bus.wants():
            self._wanted.add(job)

    async def _listen_cancels(self) -> None:
        async for job in self.bus.watch_cancelled():
            self._cancelled.add(job)

    async def leave(self) -> None:
        """Nobody counts on this worker until it comes back, and it pulls nothing."""
        self.here.clear()
        await self.bus.stop_pulling()
        await self.bus.depart(self.name)
        await asyncio.sleep(0.1)

    async def come_back(self) -> None:
        self.here.set()

    async def _announce(self) -> None:
        while True:
            await self.here.wait()
            await self.bus.announce(
                Presence(
                    worker=self.name, pools=("default",), models=(WARM,), device="paint", rows=self.rows,
                    free=self.rows, build="test",
                )
            )  # fmt: skip
            await asyncio.sleep(0.5)

    async def _work(self, delivered: Delivered[Job]) -> None:
        job = delivered.value
        claim = await self.bus.claim(job.id, self.name)
        if claim is None:
            await delivered.nak()
            return
        await self._tell(Started(job=job.id, epoch=claim.epoch, worker=self.name))
        beats = asyncio.create_task(self._beat(delivered, claim))
        try:
            if isinstance(job.task, Enlarge):
                await self._enlarge(job, job.task, claim)
            else:
                await self._paint(job, job.task, claim)
        finally:
            await stop(beats)
        await delivered.ack()
        await self.bus.release(claim)

    async def _beat(self, delivered: Delivered[Job], claim: Claim) -> None:
        while True:
            await asyncio.sleep(2.0)
            await delivered.in_progress()
            assert await self.bus.renew(claim)

    async def _paint(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        shown = 0
        for step in range(1, recipe.steps + 1):
            if self.stand_at == step:
                self.going.clear()
            await asyncio.sleep(self.speed)
            while not self.going.is_set() and job.id not in self._cancelled:
                await asyncio.sleep(0.02)
                if job.id in self._wanted and shown < step - 1:  # asked for while it stands
                    await self._frames(job.id, recipe, claim, shown := step - 1)
            if job.id in self._cancelled or await self.bus.is_cancelled(job.id):
                await self._tell(Cancelled(job=job.id, epoch=claim.epoch, steps=step - 1, cost=0.1))
                return
            if job.id in self._wanted:
                await self._frames(job.id, recipe, claim, shown := step)
        for image in range(recipe.count):
            size = (recipe.width, recipe.height)
            await self._hand_in(job.id, claim, image, solid(image, recipe.seed % 20, "PNG", size), size)
            rungs = (Rung(recipe.steps, solid(image, recipe.steps, "WEBP")),)
            ladder = Ladder(job=job.id, image=image, of=recipe.steps, shape=(4, 8, 8), rungs=rungs)
            await self._hand_in(job.id, claim, image, encode(ladder), size, "ladder")
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=0.2, ms_per_step=1.0))
        self.done.append(job.id)

    async def _frames(self, job: str, recipe: Recipe, claim: Claim, step: int) -> None:
        left = (recipe.steps - step) * self.speed
        for image in range(recipe.count):
            picture = solid(image, step, "JPEG", (recipe.width, recipe.height))
            frame = Frame(
                job=job, image=image, epoch=claim.epoch, step=step, of=recipe.steps, picture=picture, seconds_left=left
            )
            await self.bus.publish_frame(frame)

    async def _enlarge(self, job: Job, task: Enlarge, claim: Claim) -> None:
        source = Image.open(io.BytesIO(await self.bus.get_blob(task.source, 1 << 24)))
        size = (source.width * task.factor, source.height * task.factor)
        out = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(out, "PNG")
        await self._hand_in(job.id, claim, 0, out.getvalue(), size)
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.1, seconds=0.1, ms_per_step=0.0))
        self.done.append(job.id)

    async def _hand_in(
        self,
        job: str,
        claim: Claim,
        image: int,
        payload: bytes,
        size: tuple[int, int],
        kind: Literal["image", "ladder"] = "image",
    ) -> None:
        sha = await self.bus.put_blob(payload)
        assert sha == hashlib.sha256(payload).hexdigest()
        await self._tell(
            Picture(
                job=job, image=image, epoch=claim.epoch, kind=kind, sha256=sha, bytes=len(payload),
                width=size[0], height=size[1],
            )
        )  # fmt: skip

    async def _tell(self, result: Started | Picture | Finished | Cancelled) -> None:
        await self.bus.publish_result(self.name, result)


@dataclass
class World:
    """One server with two members, the bot in it, and the whole house behind the bot."""

    house: House
    client: DarkroomClient
    painter: Painter
    folder: Path
    env: simcord.Env = field(init=False)
    guild: GuildHandle = field(init=False)
    channel: ChannelHandle = field(init=False)
    alice: MemberActor = field(init=False)
    bob: MemberActor = field(init=False)
    courier: asyncio.Task[None] = field(init=False)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def furnish(self, env: simcord.Env) -> None:
        self.env = env
        self.guild = env.create_guild()
        self.channel = self.guild.create_text_channel("pictures")
        self.alice, self.bob = (self.guild.add_member(env.create_user(name)) for name in ("alice", "bob"))

    async def online(self) -> None:
        """The worker comes, and the house knows it."""
        self.tasks.append(asyncio.create_task(self.painter.run()))
        await self.until(lambda: self.studio.workers())

    async def close(self) -> None:
        for task in self.tasks:
            await stop(task)

    @property
    def studio(self) -> Studio:
        return self.house.studio

    async def until(self, what: Callable[[], Any], seconds: float = 40.0) -> Any:
        """Wait until `what` is true, and return it. A courier that died is told at once."""
        ends = time.perf_counter() + seconds
        while not (found := what()):
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.perf_counter() < ends, f"not in {seconds} s"
            await asyncio.sleep(0.02)
        return found

    def message(self, message_id: int) -> discord.Message:
        return next(each for each in self.channel.history() if each.id == message_id)

    async def ended(self, result: InteractionResult) -> discord.Message:
        """The answer's message, once its job is over: no Cancel button is left."""
        assert result.response
        identity = result.response.id
        return await self.until(lambda: (m := self.message(identity)) and "Cancel" not in self.labels(m) and m)

    @staticmethod
    def labels(message: Any) -> list[str]:
        """What the buttons say; of a message or of an interaction's response."""
        rows = [row if isinstance(row, dict) else row.to_dict() for row in message.components]
        return [button.get("label") or button["emoji"]["name"] for row in rows for button in row["components"]]

    def begin(self) -> None:
        """A courier for the client, outside the bot's own scope and before the bot, as in `serve`."""
        self.courier = asyncio.create_task(Courier(self.studio, Mail(self.client)).run())
        self.tasks.append(self.courier)

    async def stop_courier(self) -> None:
        self.tasks.remove(self.courier)
        await stop(self.courier)

    async def restart(self) -> None:
        """The bot dies and another one comes up."""
        if self.courier in self.tasks:
            await self.stop_courier()
        self.client = a_client(self.house.desk, self.folder)
        self.begin()
        await self.env.restart_bot(self.client)


def a_client(desk: Desk, folder: Path) -> DarkroomClient:
    return DarkroomClient(desk, folder / "synced", shard_count=1)


async def stop(task: asyncio.Task[None]) -> None:
    while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
        task.cancel()
        await asyncio.wait([task], timeout=1)
    if not task.cancelled():
        task.result()


@asynccontextmanager
async def a_house(folder: Path, watch: BlockBuster) -> AsyncIterator[tuple[House, Painter]]:
    """An open house and a worker that is not yet at work."""
    async with AsyncExitStack() as parts:
        watch.deactivate()  # opening the house may block: nobody is there yet
        broker = await parts.enter_async_context(Broker(folder / "nats"))
        bus, own = [await Bus.connect(broker.url, broker.token) for _ in range(2)]
        for one in (bus, own):
            await one.declare()
            parts.push_async_callback(one.close)
        house = await parts.enter_async_context(open_house(load(data=folder), bus))
        watch.activate()
        yield house, Painter(own)


@asynccontextmanager
async def a_world(folder: Path, watch: BlockBuster, *, worker: bool = True) -> AsyncIterator[World]:
    async with AsyncExitStack() as parts:
        house, painter = await parts.enter_async_context(a_house(folder, watch))
        client = a_client(house.desk, folder)
        world = World(house, client, painter, folder)
        parts.push_async_callback(world.close)
        if worker:
            await world.online()
        world.begin()
        world.furnish(await parts.enter_async_context(simcord.run(client, settle_timeout=10.0)))
        yield world


@pytest.fixture
def open_world(tmp_path: Path, event_loop_stays_free: BlockBuster) -> Callable[..., Any]:
    """`async with open_world() as world`."""
    return lambda **options: a_world(tmp_path, event_loop_stays_free, **options)


@pytest.fixture
def open_rooms(tmp_path: Path, event_loop_stays_free: BlockBuster) -> Callable[[], Any]:
    """`async with open_rooms() as (house, painter)`, for who brings a Discord of his own."""
    return lambda: a_house(tmp_path, event_loop_stays_free)
