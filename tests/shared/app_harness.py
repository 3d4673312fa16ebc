"""Apps over one broker and one data folder, and a small worker that speaks the real wire contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal

from bot.app.settings import Settings
from bot.app.wiring import App, open_app
from engine.bus import BlobMissing, BrokerUnreachable, Bus, BusLimits, BusMessage
from engine.bus.embedded_broker import Broker
from engine.contract import (
    Frame,
    Job,
    JobCancelled,
    JobFinished,
    JobStarted,
    Keyframe,
    Ladder,
    ModelProfile,
    PictureReady,
    Presence,
    Recipe,
    UpscaleMethod,
    encode,
    required_blobs,
)
from shared.picture_files import make_png

LEASE = 1.0


LATENTS = {10: b"\0" * 4, 20: b"\1" * 4}  # by the step of a keyframe


JPEG = b"\xff\xd8\xff\xe0 a small picture"


def make_profile(name: str = "embedded", revision: str = "1") -> ModelProfile:
    return ModelProfile(
        name=name,
        revision=revision,
        dtype="float32",
        size=64,
        multiple=8,
        max_pixels=128 * 128,
        tokens=24,
        steps=40,
        sampler="ddim",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=3.0,
        row_ms=1.0,
        encode_ms=1.0,
        decode_ms=1.0,
        has_judge=True,
    )


class FakeWorker:
    """A worker without a network. It claims, reports and announces as the contract says.

    `make_result` replaces its results."""

    def __init__(self, bus: Bus, name: str = "fake-worker", *, rows: int = 32, models: tuple[str, ...] = ("embedded",)):
        self.bus = bus
        self.name = name
        self.rows = rows
        self.models = models
        self.pools = ("default",)
        self.revision = "1"
        self.scale = 1  # scale of its finished pictures
        self.enlarge_ms = 0.0  # the time of its super-resolver
        self.upscale_method: UpscaleMethod | None = None  # the upscale method that it reports
        self.started_jobs: list[str] = []
        self.fetched_blobs: dict[str, bytes] = {}  # inputs of started jobs, by SHA-256
        self.run_gate = asyncio.Event()  # set: jobs run to their end; clear: they wait halfway
        self.run_gate.set()
        self.make_result: Callable[[Job, int], object] | None = None  # (job, epoch) → a result in place of pictures
        self.running_jobs: dict[str, asyncio.Task[None]] = {}
        self.is_full = False  # True: it pulls no more jobs
        self.has_vanished = False
        self._is_stopping = False

    async def announce(self) -> None:
        presence = Presence(
            worker=self.name,
            pools=self.pools,
            device="none",
            models=tuple(make_profile(model, self.revision) for model in self.models),
            rows=self.rows,
            free=max(0, self.rows - 8 * len(self.running_jobs)),
            software_build="test",
            upscale_ms=self.enlarge_ms,
        )
        await self.bus.announce(presence)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce_forever())
            group.create_task(self._watch_cancellations())
            try:
                while True:
                    delivered = await self._pull()
                    if delivered is not None:
                        self.running_jobs[delivered.value.id] = group.create_task(self._run_job(delivered))
            finally:
                self._is_stopping = (
                    True  # a group cancels its tasks once, and before Python 3.12 `wait_for` may swallow that
                )

    async def _pull(self) -> BusMessage[Job] | None:
        """Like the real worker, it waits out an outage of the broker."""
        if self.is_full:
            await asyncio.sleep(0.1)
            return None
        try:
            return await self.bus.pull_job(["default"], timeout=0.5)
        except BrokerUnreachable:
            await asyncio.sleep(0.1)
            return None

    async def take_job(self) -> Job:
        """Returns the next job, for a test that acts as the worker. A worker silent for a lease gets no jobs."""
        for _ in range(10):
            await self.announce()
            if (delivered := await self.bus.pull_job(["default"], timeout=0.5)) is not None:
                return delivered.value
        raise AssertionError("no job came")

    async def vanish(self, running: asyncio.Task[None]) -> None:
        """Ends as after SIGKILL: it releases no claim and reports nothing more."""
        self.has_vanished = True
        while not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=1)
        await self.bus.close()

    async def _announce_forever(self) -> None:
        while not self._is_stopping:
            with suppress(BrokerUnreachable):
                await self.announce()
            await asyncio.sleep(self.bus.limits.renewal_interval)

    async def _watch_cancellations(self) -> None:
        async for job in self.bus.watch_cancelled():
            if self._is_stopping:
                return
            if job in self.running_jobs:
                self.running_jobs[job].cancel()

    async def _run_job(self, delivered) -> None:
        job = delivered.value
        claim = await self.bus.claim_job(job.id, self.name)
        if claim is None:
            await delivered.nak(0.1)
            return
        heartbeats = asyncio.create_task(self._send_heartbeats(claim, delivered))
        try:
            if await self.bus.is_cancelled(job.id):
                raise asyncio.CancelledError
            for sha in required_blobs(job.task):
                with suppress(BlobMissing):
                    self.fetched_blobs[sha] = await self.bus.get_blob(sha, 1 << 20)
            self.started_jobs.append(job.id)
            await self.publish_result(JobStarted(job=job.id, epoch=claim.epoch, worker=self.name))
            await self.run_gate.wait()
            await self.finish_job(job, claim.epoch)
        except asyncio.CancelledError:
            if self.has_vanished:
                raise
            has_run = job.id in self.started_jobs  # a job cancelled before its first step costs nothing
            await self.publish_result(
                JobCancelled(job=job.id, epoch=claim.epoch, steps=10 * has_run, cost=has_run * job.cost / 4)
            )
        finally:
            heartbeats.cancel()
            self.running_jobs.pop(job.id, None)
        await delivered.ack()
        await self.bus.release_claim(claim)

    async def _send_heartbeats(self, claim, delivered) -> None:
        while True:
            await asyncio.sleep(self.bus.limits.renewal_interval)
            await self.bus.renew_claim(claim)
            await delivered.in_progress()

    async def publish_result(self, result) -> None:
        await self.bus.publish_result(self.name, result)

    async def finish_job(self, job: Job, epoch: int) -> None:
        if self.make_result is not None and (replacement := self.make_result(job, epoch)) is not None:
            await self.publish_result(replacement)
            return
        recipe = job.task if isinstance(job.task, Recipe) else None
        for image in range(recipe.count if recipe else 1):
            if recipe:
                await self.publish_frame(job, epoch, image, recipe.steps // 2)
            await self.publish_picture(job, epoch, image)
            if recipe:
                await self.publish_ladder(job, epoch, image)
        chosen = tuple(range(recipe.drawn_count))[-recipe.count :] if recipe and recipe.needs_choice else ()
        finished = JobFinished(
            job=job.id, epoch=epoch, cost=job.cost / 2, seconds=1.5, ms_per_step=2.0, chosen_candidates=chosen
        )
        await self.publish_result(finished)

    async def publish_frame(self, job: Job, epoch: int, image: int, step: int) -> None:
        assert isinstance(job.task, Recipe)
        frame = Frame(
            job=job.id, image=image, epoch=epoch, step=step, total_steps=job.task.steps, picture=JPEG, seconds_left=3.0
        )
        await self.bus.publish_frame(frame)

    async def publish_picture(self, job: Job, epoch: int, image: int) -> None:
        side = self.scale * job.task.width if isinstance(job.task, Recipe) else 256
        content = make_png(side, side, 40 * image)
        await self.publish_blob(
            job, epoch, image, "image", content, side, None if isinstance(job.task, Recipe) else self.upscale_method
        )

    async def publish_ladder(self, job: Job, epoch: int, image: int) -> None:
        keyframes = tuple(
            Keyframe(step=step, thumbnail=make_png(8, 8, step), latent=LATENTS.get(step)) for step in (0, 10, 20)
        )
        content = encode(Ladder(job=job.id, image=image, total_steps=40, shape=(1, 1), keyframes=keyframes))
        await self.publish_blob(job, epoch, image, "ladder", content, 64)

    async def publish_blob(
        self,
        job: Job,
        epoch: int,
        image: int,
        kind: Literal["image", "ladder"],
        content: bytes,
        side: int,
        method: UpscaleMethod | None = None,
    ) -> None:
        sha = await self.bus.put_blob(content)
        picture = PictureReady(
            job=job.id,
            image=image,
            epoch=epoch,
            kind=kind,
            sha256=sha,
            bytes=len(content),
            width=side,
            height=side,
            method=method,
        )
        await self.publish_result(picture)


class AppHarness:
    """Opens apps and workers over one broker and one data folder, and closes them in order."""

    def __init__(self, stack: AsyncExitStack, broker: Broker, settings: Settings) -> None:
        self.stack = stack
        self.broker = broker
        self.settings = settings

    async def connect(self) -> Bus:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=LEASE))
        await bus.declare()
        self.stack.push_async_callback(bus.close)
        return bus

    async def open_app(self, **options: Any) -> App:
        return await self.stack.enter_async_context(open_app(self.settings, await self.connect(), **options))

    @asynccontextmanager
    async def open_temporary_app(self) -> AsyncIterator[App]:
        """Opens an app that closes before the test ends."""
        async with open_app(self.settings, await self.connect()) as app:
            yield app

    async def make_worker(self, name: str) -> FakeWorker:
        """Makes a worker that the test drives: it pulls and announces only on command."""
        return FakeWorker(await self.connect(), name)

    async def start_worker(self, name: str = "fake-worker", *, rows: int = 32) -> tuple[FakeWorker, asyncio.Task[None]]:
        worker = FakeWorker(await self.connect(), name, rows=rows)
        await worker.announce()
        task = asyncio.create_task(worker.run())

        async def stop() -> None:
            while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
                task.cancel()
                await asyncio.wait([task], timeout=1)

        self.stack.push_async_callback(stop)
        return worker, task


async def wait_for_end(app, job, wait_until):
    async def is_done() -> bool:
        return (await app.services.job_views.load_view(job)).state not in ("queued", "sent", "running")

    await wait_until(is_done)
    return await app.services.job_views.load_view(job)


async def open_app_and_worker(harness, wait_until):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    return app, worker


async def finish_job(harness, wait_until, ann, destination, text="a lamp --seed 7 --count 2 --steps 40"):
    app, worker = await open_app_and_worker(harness, wait_until)
    (accepted,) = await app.services.jobs.imagine(text, ann, destination)
    return app, worker, await wait_for_end(app, accepted.job, wait_until)
