"""A whole house for the Discord tests: real SQLite, real nats-server, real studio, and a worker of solid colours.

The worker speaks the true wire contract and needs no torch. It runs as fast as the test lets it: `speed` seconds a
step, and stands still where it is told to.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from PIL import Image

from engine.broker import Broker
from engine.bus import Bus, Claim, Delivered
from engine.job import Cancelled, Enlarge, Finished, Frame, Job, Picture, Presence, Recipe, Started, Warm

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
        self.done: list[str] = []
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
        while True:
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
        if isinstance(job.task, Enlarge):
            await self._enlarge(job, job.task, claim)
        else:
            await self._paint(job, job.task, claim)
        await delivered.ack()
        await self.bus.release(claim)

    async def _paint(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for step in range(1, recipe.steps + 1):
            if self.stand_at == step:
                self.going.clear()
            await asyncio.sleep(self.speed)
            while not self.going.is_set() and job.id not in self._cancelled:  # noqa: ASYNC110 - for either of two
                await asyncio.sleep(0.02)
            if job.id in self._cancelled or await self.bus.is_cancelled(job.id):
                await self._tell(Cancelled(job=job.id, epoch=claim.epoch, steps=step - 1, cost=0.1))
                return
            if job.id in self._wanted:
                await self._frames(job.id, recipe, claim, step)
        for image in range(recipe.count):
            await self._hand_in(job.id, claim, image, solid(image, recipe.seed % 20, "PNG"), (64, 64))
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=0.2, ms_per_step=1.0))
        self.done.append(job.id)

    async def _frames(self, job: str, recipe: Recipe, claim: Claim, step: int) -> None:
        left = (recipe.steps - step) * self.speed
        for image in range(recipe.count):
            picture = solid(image, step, "JPEG")
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

    async def _hand_in(self, job: str, claim: Claim, image: int, payload: bytes, size: tuple[int, int]) -> None:
        sha = await self.bus.put_blob(payload)
        assert sha == hashlib.sha256(payload).hexdigest()
        await self._tell(
            Picture(
                job=job, image=image, epoch=claim.epoch, kind="image", sha256=sha, bytes=len(payload),
                width=size[0], height=size[1],
            )
        )  # fmt: skip

    async def _tell(self, result: Started | Picture | Finished | Cancelled) -> None:
        await self.bus.publish_result(self.name, result)


@pytest.fixture(scope="session")
def broker_token() -> str:
    return "a-token-for-tests"


@pytest_asyncio.fixture
async def broker(tmp_path_factory: pytest.TempPathFactory, broker_token: str) -> AsyncIterator[Broker]:
    async with Broker(tmp_path_factory.mktemp("nats"), token=broker_token) as running:
        yield running


@pytest_asyncio.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    """The bot's connection."""
    connected = await Bus.connect(broker.url, broker.token)
    await connected.declare()
    yield connected
    await connected.close()


@pytest_asyncio.fixture
async def painter(broker: Broker, bus: Bus) -> AsyncIterator[Painter]:
    """A worker online, on a connection of its own."""
    own = await Bus.connect(broker.url, broker.token)
    await own.declare()
    worker = Painter(own)
    task = asyncio.create_task(worker.run())
    yield worker
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await own.close()
