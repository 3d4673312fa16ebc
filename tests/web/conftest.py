"""A whole house behind a real HTTP server: SQLite, nats-server, the real studio, and a worker that draws discs.

The worker speaks the true wire contract and needs no torch: it blends noise into a disc, a little more each step.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from PIL import Image, ImageDraw

from bot.config import Settings, load
from bot.house import open_house
from bot.studio import Studio
from bot.web.app import open_chatroom, opened
from engine.bus import Bus, Claim, Delivered
from engine.bus.broker import Broker
from engine.job import (
    Cancelled,
    Enlarge,
    Failed,
    Finished,
    Frame,
    Job,
    Ladder,
    Picture,
    Presence,
    Recipe,
    Result,
    Rung,
    Started,
    Warm,
    encode,
)

STEPS = 24
WARM = Warm(
    name="embedded", revision="1", dtype="float32", size=64, multiple=8, max_pixels=256 * 256, tokens=24, steps=STEPS,
    sampler="ddpm", guidance=3.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
)  # fmt: skip
INKS = ["#c33", "#3a5", "#36c", "#c93"]


def drawn(seed: int, image: int, share: float, form: str) -> bytes:
    """Noise (share 0) that has become a disc (share 1)."""
    noise = Image.frombytes("RGB", (8, 8), random.Random(seed + image).randbytes(192)).resize((64, 64))
    disc = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(disc).ellipse((10, 10, 54, 54), fill=INKS[image])
    out = io.BytesIO()
    Image.blend(noise, disc, share).save(out, form)
    return out.getvalue()


class Drawer:
    """A worker: pulls, claims, draws, hands in. `speed` is seconds a step; a prompt with "impossible" fails."""

    def __init__(self, bus: Bus, name: str = "drawer") -> None:
        self.bus, self.name, self.speed = bus, name, 0.02
        self.going = asyncio.Event()  # cleared: every job stands still where it is
        self.going.set()
        self.leaving = False  # it no longer says that it is there
        self._wanted: set[str] = set()
        self._cancelled: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for keep_up in (self._listen_wants(), self._listen_cancels(), self._announce()):
                group.create_task(keep_up)
            while True:
                delivered = await self.bus.pull(["default"], timeout=0.5)
                if delivered is not None:
                    group.create_task(self._work(delivered))

    async def _listen_wants(self) -> None:
        async for job in self.bus.wants():
            self._wanted.add(job)

    async def _listen_cancels(self) -> None:
        async for job in self.bus.watch_cancelled():
            self._cancelled.add(job)

    async def _announce(self) -> None:
        presence = Presence(
            worker=self.name, pools=("default",), models=(WARM,), device="paper and ink", rows=32, free=32, build="test"
        )
        while not self.leaving:
            await self.bus.announce(presence)
            await asyncio.sleep(0.5)

    async def _work(self, delivered: Delivered[Job]) -> None:
        job = delivered.value
        claim = await self.bus.claim(job.id, self.name)
        if claim is None:
            await delivered.nak()
            return
        await self._tell(Started(job=job.id, epoch=claim.epoch, worker=self.name))
        if isinstance(job.task, Enlarge):
            await self._enlarge(job, job.task, claim)
        else:
            await self._draw(job, job.task, claim)
        await delivered.ack()
        await self.bus.release(claim)

    async def _draw(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for step in range(1, recipe.steps + 1):
            await asyncio.sleep(self.speed)
            while not self.going.is_set() and job.id not in self._cancelled:
                await asyncio.sleep(0.02)
            if job.id in self._cancelled:
                await self._tell(Cancelled(job=job.id, epoch=claim.epoch, steps=step - 1, cost=0.1))
                return
            if "impossible" in recipe.concepts[0].text and step == 3:
                reason = "The numbers went out of bounds"
                await self._tell(Failed(job=job.id, epoch=claim.epoch, reason=reason, blame="model"))
                return
            if job.id in self._wanted:
                await self._show(job.id, recipe, claim, step)
        for image in range(recipe.count):
            await self._hand_in(job.id, claim, image, "image", drawn(recipe.seed, image, 1, "PNG"), (64, 64))
            await self._hand_in(job.id, claim, image, "ladder", self._ladder(job.id, recipe, image), (64, 64))
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=0.5, ms_per_step=1.0))

    async def _show(self, job: str, recipe: Recipe, claim: Claim, step: int) -> None:
        left = (recipe.steps - step) * self.speed
        for image in range(recipe.count):
            picture = drawn(recipe.seed, image, step / recipe.steps, "JPEG")
            await self.bus.publish_frame(
                Frame(
                    job=job, image=image, epoch=claim.epoch, step=step, of=recipe.steps, picture=picture,
                    seconds_left=left,
                )
            )  # fmt: skip

    def _ladder(self, job: str, recipe: Recipe, image: int) -> bytes:
        every = max(4, -(-recipe.steps // 48))
        steps = range(every, recipe.steps + 1, every)
        rungs = tuple(Rung(step=k, thumbnail=drawn(recipe.seed, image, k / recipe.steps, "WEBP")) for k in steps)
        return encode(Ladder(job=job, image=image, of=recipe.steps, shape=(4, 8, 8), rungs=rungs))

    async def _enlarge(self, job: Job, task: Enlarge, claim: Claim) -> None:
        source = Image.open(io.BytesIO(await self.bus.get_blob(task.source, 1 << 24)))
        size = (source.width * task.factor, source.height * task.factor)
        out = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(out, "PNG")
        await self._hand_in(job.id, claim, 0, "image", out.getvalue(), size)
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.1, seconds=0.1, ms_per_step=0.0))

    async def _hand_in(
        self, job: str, claim: Claim, image: int, kind: Any, payload: bytes, size: tuple[int, int]
    ) -> None:
        sha = await self.bus.put_blob(payload)
        await self._tell(
            Picture(
                job=job, image=image, epoch=claim.epoch, kind=kind, sha256=sha, bytes=len(payload), width=size[0],
                height=size[1],
            )
        )  # fmt: skip

    async def _tell(self, result: Result) -> None:
        await self.bus.publish_result(self.name, result)


@dataclass
class Room:
    """An open chatroom: its address, a client that comes as the terminal does, and the ends to pull on."""

    url: str
    port: int
    client: aiohttp.ClientSession
    studio: Studio
    app: web.Application
    settings: Settings
    drawers: list[Drawer] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of one request; `headers` with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, self.url + path, json=body, headers=named) as answer:
            return answer.status, await answer.json()

    async def imagine(self, prompt: str, **options: object) -> str:
        """A job's id."""
        status, said = await self.ask("POST", "/api/jobs", {"prompt": prompt, **options})
        assert status == 201, said
        return str(said["id"])

    async def events(self, path: str, **headers: str) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events as name and value."""
        async with self.client.get(self.url + path, headers=headers) as answer:
            assert answer.status == 200
            name = ""
            async for raw in answer.content:
                key, _, value = raw.decode().rstrip("\r\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

    async def end_of(self, job: str) -> dict[str, Any]:
        """The job once it is over."""
        async for name, value in self.events(f"/api/jobs/{job}/events"):
            if name in {"finished", "failed", "cancelled"}:
                return value
        raise AssertionError("the stream ended before the job")


OpenRoom = Callable[..., Any]


@pytest.fixture
def open_room(tmp_path: Path, broker: Broker) -> OpenRoom:
    """`async with open_room(port=…, workers=1, **settings)`: a chatroom on the test's folder and broker."""

    @asynccontextmanager
    async def opening(*, port: int = 0, workers: int = 1, **chosen: Any) -> AsyncIterator[Room]:
        settings = await asyncio.to_thread(
            load, data=tmp_path, **{"host": "127.0.0.1", "discord_token": None, **chosen}
        )
        async with AsyncExitStack() as parts:
            house = await parts.enter_async_context(open_house(settings, await _bus(parts, broker)))
            app = await asyncio.to_thread(open_chatroom, settings, house.studio)
            real = await parts.enter_async_context(opened(app, "127.0.0.1", port))
            client = await parts.enter_async_context(aiohttp.ClientSession(read_bufsize=1 << 20))
            room = Room(f"http://127.0.0.1:{real}", real, client, house.studio, app, settings)
            for _ in range(workers):
                room.drawers.append(await parts.enter_async_context(working(broker)))
            await _until(lambda: len(room.studio.workers()) >= workers)
            yield room

    return opening


@asynccontextmanager
async def working(broker: Broker) -> AsyncIterator[Drawer]:
    """A worker online, on a connection of its own."""
    async with AsyncExitStack() as parts:
        drawer = Drawer(await _bus(parts, broker))
        task = asyncio.create_task(drawer.run())
        try:
            yield drawer
        finally:
            while not task.done():  # nats-py swallows a cancellation that comes while it flushes
                task.cancel()
                await asyncio.wait([task], timeout=1)


async def _bus(parts: AsyncExitStack, broker: Broker) -> Bus:
    bus = await Bus.connect(broker.url, broker.token)
    parts.push_async_callback(bus.close)
    await bus.declare()
    return bus


async def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    async with Broker(tmp_path_factory.mktemp("nats"), token="a-token-for-tests") as running:
        yield running


@pytest_asyncio.fixture
async def room(open_room: OpenRoom) -> AsyncIterator[Room]:
    """A chatroom with one worker."""
    async with open_room() as one:
        yield one
