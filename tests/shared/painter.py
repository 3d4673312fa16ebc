"""A worker without torch: speaks the real wire contract, paints plain pictures, and pauses where a test says so.

Knows the bus and the contract, not the bot. `solid` encodes image and step in the colour; `disc` looks like a picture
that emerges from noise.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from collections.abc import Callable
from typing import Literal

from PIL import Image, ImageDraw

from engine.bus import Bus, BusMessage, Claim
from engine.contract import (
    ControlMessage,
    Frame,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobModelLoading,
    JobStarted,
    Keyframe,
    Ladder,
    ModelProfile,
    PictureReady,
    Presence,
    Recipe,
    Result,
    UpscaleMethod,
    UpscaleTask,
    Verdict,
    encode,
)

Form = Literal["JPEG", "PNG", "WEBP"]
Paint = Callable[[Recipe, int, int, Form], bytes]  # recipe, image, step → a picture in that form

STEPS = 20
INKS = ["#c33", "#3a5", "#36c", "#c93"]


def warm(steps: int = STEPS) -> ModelProfile:
    """The one model that a painter has ready."""
    return ModelProfile(
        name="embedded", revision="1", dtype="float32", size=64, multiple=8, max_pixels=256 * 256, tokens=64,
        steps=steps, sampler="ddpm", guidance=3.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
    )  # fmt: skip


def solid(recipe: Recipe, image: int, step: int, form: Form) -> bytes:
    """One colour: red encodes the image, green the step, or in a finished picture the seed."""
    shown = recipe.seed % 20 if form == "PNG" else step
    size = (64, 64) if form == "WEBP" else (recipe.width, recipe.height)
    out = io.BytesIO()
    Image.new("RGB", size, (60 * image + 30, 10 * shown + 20, 128)).save(out, form)
    return out.getvalue()


def disc(recipe: Recipe, image: int, step: int, form: Form) -> bytes:
    """Noise that becomes a disc."""
    noise = Image.frombytes("RGB", (8, 8), random.Random(recipe.seed + image).randbytes(192)).resize((64, 64))
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 54, 54), fill=INKS[image])
    out = io.BytesIO()
    Image.blend(noise, picture, step / recipe.steps).save(out, form)
    return out.getvalue()


class Painter:
    """Pulls, claims, paints step by step, delivers. `speed`: seconds a step. A prompt with "impossible" fails."""

    def __init__(
        self, bus: Bus, name: str = "painter", *, steps: int = STEPS, paint: Paint = solid, speed: float = 0.01
    ) -> None:
        self.bus, self.name, self.speed, self.paint, self.model = bus, name, speed, paint, warm(steps)
        self.going = asyncio.Event()  # cleared: every job pauses at its step
        self.going.set()
        self.stand_at: int | None = None  # the step at which all jobs pause until `going` is set again
        self.here = asyncio.Event()
        self.here.set()
        self.loading: tuple[float, ...] = ()  # model loading progress before each job; `stand_at` 0 pauses there
        self.models: tuple[ModelProfile, ...] = ()  # the models that it announces, if not its one model
        self.done: list[str] = []
        self._over = False
        self.checks = False  # whether it has a picture check
        self.enlarge_ms = 0.0  # of its super-resolver
        self.keeps = 1  # every so many keyframes of a ladder have latents
        self.early: dict[int, Verdict] = {}  # image → the check's verdict on previews, from 40 % of the steps on
        self.verdicts: dict[int, Verdict] = {}  # image → its verdict on the finished picture; the default is "passed"
        self._wanted: set[str] = set()
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self.steers: list[ControlMessage] = []  # all received control messages

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for keep_up in (self._listen_wants(), self._listen_cancels(), self._listen_steers(), self._announce()):
                group.create_task(keep_up)
            try:
                while True:
                    await self.here.wait()
                    delivered = await self.bus.pull_job(["default"], timeout=0.5)
                    if delivered is not None:
                        group.create_task(self._work(delivered))
            finally:
                self._over = True  # a group cancels its tasks once, and before Python 3.12 `wait_for` may swallow that

    async def leave(self) -> None:
        """Leaves the pool and pulls nothing until `come_back`."""
        self.here.clear()
        await self.bus.stop_pulling()
        await self.bus.remove_presence(self.name)
        await asyncio.sleep(0.1)

    async def come_back(self) -> None:
        self.here.set()

    async def _listen_wants(self) -> None:
        async for job in self.bus.watch_preview_requests():
            self._wanted.add(job)

    async def _listen_cancels(self) -> None:
        async for job in self.bus.watch_cancelled():
            self._cancelled.add(job)

    def go_on(self) -> None:
        """Ends every pause, as a real worker does after a while."""
        self._paused.clear()

    async def _listen_steers(self) -> None:
        async for steer in self.bus.watch_control_messages():
            self.steers.append(steer)
            if steer.deed == "pause":
                self._paused.add(steer.job)
            elif steer.deed == "resume":
                self._paused.discard(steer.job)

    async def _announce(self) -> None:
        while not self._over:
            await self.here.wait()
            await self.bus.announce(self._presence())
            await asyncio.sleep(0.5)

    def _presence(self) -> Presence:
        return Presence(
            worker=self.name, pools=("default",), models=self.models or (self.model,), device="paper and ink", rows=32,
            free=32, build="test", checks=self.checks, enlarge_ms=self.enlarge_ms,
        )  # fmt: skip

    def _verdict(self, job: Job, verdicts: dict[int, Verdict], image: int) -> Verdict:
        return verdicts.get(image, "passed") if job.check and self.checks else "unchecked"

    async def _work(self, delivered: BusMessage[Job]) -> None:
        job = delivered.value
        claim = await self.bus.claim_job(job.id, self.name)
        if claim is None:
            await delivered.nak()
            return
        await self._tell(JobStarted(job=job.id, epoch=claim.epoch, worker=self.name))
        beats = asyncio.create_task(self._beat(delivered, claim))
        try:
            if isinstance(job.task, UpscaleTask):
                await self._enlarge(job, job.task, claim)
            else:
                await self._develop(job, job.task, claim)
        finally:
            await stop(beats)
        await delivered.ack()
        await self.bus.release_claim(claim)

    async def _beat(self, delivered: BusMessage[Job], claim: Claim) -> None:
        while True:
            await asyncio.sleep(2.0)
            await delivered.in_progress()
            assert await self.bus.renew_claim(claim)

    async def _develop(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        shown = 0
        if self.stand_at == 0:
            self.going.clear()
        for done in self.loading:
            await self.bus.publish_loading(
                JobModelLoading(job=job.id, epoch=claim.epoch, model=recipe.model, done=done)
            )
            await asyncio.sleep(self.speed)
        for step in range(1, recipe.steps + 1):
            if self._over:
                return
            if self.stand_at == step:
                self.going.clear()
            await asyncio.sleep(self.speed)
            while self._is_paused(job.id):
                await asyncio.sleep(0.02)
                if job.id in self._wanted and shown < step - 1:  # requested during the pause
                    await self._frames(job, recipe, claim, shown := step - 1)
            if job.id in self._cancelled or await self.bus.is_cancelled(job.id):
                await self._tell(JobCancelled(job=job.id, epoch=claim.epoch, steps=step - 1, cost=0.1))
                return
            if "impossible" in recipe.concepts[0].text and step == 3:
                reason = "The numbers went out of bounds"
                await self._tell(JobFailed(job=job.id, epoch=claim.epoch, reason=reason, blame="model"))
                return
            if job.id in self._wanted:
                await self._frames(job, recipe, claim, shown := step)
        await self._finish(job, recipe, claim)

    def _is_paused(self, job: str) -> bool:
        stopped = not self.going.is_set() or job in self._paused
        return stopped and not self._over and job not in self._cancelled

    async def _finish(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for image in range(recipe.count):
            payload = self.paint(recipe, image, recipe.steps, "PNG")
            with Image.open(io.BytesIO(payload)) as picture:
                size = picture.size
            await self._hand_in(job, claim, image, payload, size)
            await self._hand_in(job, claim, image, self._ladder(job.id, recipe, image), size, "ladder")
        await self._tell(JobFinished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=0.5, ms_per_step=1.0))
        self.done.append(job.id)

    async def _frames(self, job: Job, recipe: Recipe, claim: Claim, step: int) -> None:
        left = (recipe.steps - step) * self.speed
        for image in range(recipe.count):
            picture = self.paint(recipe, image, step, "JPEG")
            verdict = self._verdict(job, self.early, image) if step >= 0.4 * recipe.steps else "unchecked"
            frame = Frame(
                job=job.id, image=image, epoch=claim.epoch, step=step, of=recipe.steps, picture=picture,
                seconds_left=left, verdict=verdict,
            )  # fmt: skip
            await self.bus.publish_frame(frame)

    def _ladder(self, job: str, recipe: Recipe, image: int) -> bytes:
        every = max(4, -(-recipe.steps // 48))
        steps = [step for step in range(every, recipe.end_step + 1, every) if step > recipe.first_step] or [
            recipe.end_step
        ]
        latent = bytes(4 * 4 * 8 * 8)
        rungs = tuple(
            Keyframe(
                step=step, thumbnail=self.paint(recipe, image, step, "WEBP"),
                latent=latent if step // every % self.keeps == 0 or step == recipe.end_step < recipe.steps else None,
            )
            for step in steps
        )  # fmt: skip
        return encode(Ladder(job=job, image=image, of=recipe.steps, shape=(4, 8, 8), rungs=rungs))

    async def _enlarge(self, job: Job, task: UpscaleTask, claim: Claim) -> None:
        source = Image.open(io.BytesIO(await self.bus.get_blob(task.source, 1 << 24)))
        size = (source.width * task.factor, source.height * task.factor)
        out = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(out, "PNG")
        method = task.method if self.enlarge_ms else "lanczos"
        await self._hand_in(job, claim, 0, out.getvalue(), size, method=method)
        await self._tell(JobFinished(job=job.id, epoch=claim.epoch, cost=0.1, seconds=0.1, ms_per_step=0.0))
        self.done.append(job.id)

    async def _hand_in(
        self, job: Job, claim: Claim, image: int, payload: bytes, size: tuple[int, int],
        kind: Literal["image", "ladder"] = "image", method: UpscaleMethod | None = None,
    ) -> None:  # fmt: skip
        sha = await self.bus.put_blob(payload)
        assert sha == hashlib.sha256(payload).hexdigest()
        await self._tell(
            PictureReady(
                job=job.id, image=image, epoch=claim.epoch, kind=kind, sha256=sha, bytes=len(payload),
                width=size[0], height=size[1],
                verdict="unchecked" if kind == "ladder" else self._verdict(job, self.verdicts, image),
                method=method,
            )
        )  # fmt: skip

    async def _tell(self, result: Result) -> None:
        await self.bus.publish_result(self.name, result)


async def stop(task: asyncio.Task[None]) -> None:
    """Cancels a task for good. Raises the error that ended it earlier, if any."""
    while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
        task.cancel()
        await asyncio.wait([task], timeout=1)
    if not task.cancelled():
        task.result()
