"""A worker without torch: speaks the real wire contract, paints plain pictures, and pauses where a test says so.

Knows the bus and the contract, not the bot. `paint_solid` encodes image and step in the colour. `paint_disc` looks
like a picture that emerges from noise.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import zlib
from collections.abc import Callable
from typing import Literal

import msgspec
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from engine.bus import Bus, BusMessage, Claim
from engine.contract import (
    Amendment,
    ControlMessage,
    Frame,
    Job,
    JobAmended,
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
    find_amendment_problem,
    list_final_images,
)

ImageFormat = Literal["JPEG", "PNG", "WEBP"]
PaintFunction = Callable[[Recipe, int, int, ImageFormat], bytes]  # recipe, image, step → a picture in that form

STEPS = 20
DISC_COLOURS = ["#c33", "#3a5", "#36c", "#c93"]


def make_profile(steps: int = STEPS) -> ModelProfile:
    """Makes the profile of the worker's one model."""
    return ModelProfile(
        name="embedded",
        revision="1",
        dtype="float32",
        size=64,
        multiple=8,
        max_pixels=256 * 256,
        tokens=64,
        steps=steps,
        sampler="ddpm",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=3.0,
        row_ms=1.0,
        encode_ms=1.0,
        decode_ms=1.0,
    )


def paint_solid(recipe: Recipe, image: int, step: int, image_format: ImageFormat) -> bytes:
    """Paints one colour: red encodes the image; green the step, or in a finished picture the seed."""
    green_level = recipe.seed % 20 if image_format == "PNG" else step
    size = (64, 64) if image_format == "WEBP" else (recipe.width, recipe.height)
    buffer = io.BytesIO()
    metadata = PngInfo()
    metadata.add_text("recipe", str(zlib.crc32(msgspec.json.encode(recipe))))  # other recipes give other bytes
    options = {"pnginfo": metadata} if image_format == "PNG" else {}
    Image.new("RGB", size, (60 * image + 30, 10 * green_level + 20, 128)).save(buffer, image_format, **options)
    return buffer.getvalue()


def paint_disc(recipe: Recipe, image: int, step: int, image_format: ImageFormat) -> bytes:
    """Paints noise that becomes a disc."""
    noise = Image.frombytes("RGB", (8, 8), random.Random(recipe.seed + image).randbytes(192)).resize((64, 64))
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 54, 54), fill=DISC_COLOURS[image])
    buffer = io.BytesIO()
    Image.blend(noise, picture, step / recipe.steps).save(buffer, image_format)
    return buffer.getvalue()


class PaintingWorker:
    """Pulls, claims, paints step by step, delivers. `speed`: seconds a step. A prompt with "impossible" fails."""

    def __init__(
        self,
        bus: Bus,
        name: str = "painter",
        *,
        steps: int = STEPS,
        paint: PaintFunction = paint_solid,
        speed: float = 0.01,
    ) -> None:
        self.bus = bus
        self.name = name
        self.speed = speed
        self.paint = paint
        self.model = make_profile(steps)
        self.step_gate = asyncio.Event()  # cleared: jobs pause, those before `pause_step` once they reach it
        self.step_gate.set()
        self.pause_step: int | None = None  # each job pauses there, and not before, until `step_gate` is set again
        self.in_pool = asyncio.Event()
        self.in_pool.set()
        self.loading_progress: tuple[
            float, ...
        ] = ()  # model loading progress before each job; `pause_step` 0 pauses there
        self.models: tuple[ModelProfile, ...] = ()  # the models that it announces in place of its one model
        self.finished_jobs: list[str] = []
        self._is_stopping = False
        self.has_picture_check = False  # whether it has a picture check
        self.enlarge_ms = 0.0  # of its super-resolver
        self.latents_interval = 1  # every so many keyframes of a ladder have latents
        self.preview_verdicts: dict[
            int, Verdict
        ] = {}  # image → the check's verdict on previews, from 40 % of the steps on
        self.verdicts: dict[int, Verdict] = {}  # image → its verdict on the finished picture; the default is "passed"
        self._preview_requests: set[str] = set()
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self.control_messages: list[ControlMessage] = []  # all received control messages
        self.recipes: dict[str, Recipe] = {}  # of running jobs, as they are amended
        self._steps: dict[str, int] = {}  # the step that each of them has reached

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for listener in (
                self._watch_preview_requests(),
                self._watch_cancellations(),
                self._watch_control_messages(),
                self._watch_amendments(),
                self._announce_forever(),
            ):
                group.create_task(listener)
            try:
                while True:
                    await self.in_pool.wait()
                    delivered = await self.bus.pull_job(["default"], timeout=0.5)
                    if delivered is not None:
                        group.create_task(self._run_job(delivered))
            finally:
                self._is_stopping = (
                    True  # a group cancels its tasks once, and before Python 3.12 `wait_for` may swallow that
                )

    async def leave_pool(self) -> None:
        """Leaves the pool and pulls nothing until `rejoin_pool`."""
        self.in_pool.clear()
        await self.bus.stop_pulling()
        await self.bus.remove_presence(self.name)
        await asyncio.sleep(0.1)

    async def rejoin_pool(self) -> None:
        self.in_pool.set()

    async def _watch_preview_requests(self) -> None:
        async for job in self.bus.watch_preview_requests():
            self._preview_requests.add(job)

    async def _watch_cancellations(self) -> None:
        async for job in self.bus.watch_cancelled():
            self._cancelled.add(job)

    def end_pauses(self) -> None:
        """Ends every pause, as a real worker does after a while."""
        self._paused.clear()

    async def _watch_control_messages(self) -> None:
        async for message in self.bus.watch_control_messages():
            self.control_messages.append(message)
            if message.action == "pause":
                self._paused.add(message.job)
            elif message.action == "resume":
                self._paused.discard(message.job)

    async def _watch_amendments(self) -> None:
        """Answers every change of a running job: it holds from the next step on."""
        async for message in self.bus.watch_amendments(["default"]):
            for request in message.requests:
                recipe = self.recipes.get(message.job)
                if recipe is None or any(each.number == request.number for each in recipe.amendments):
                    continue
                amendment = Amendment(request.number, self._steps[message.job], request.change)
                reason = find_amendment_problem(recipe, amendment)
                if not reason:
                    self.recipes[message.job] = msgspec.structs.replace(
                        recipe, amendments=(*recipe.amendments, amendment)
                    )
                await self._publish_result(
                    JobAmended(
                        job=message.job,
                        epoch=message.epoch,
                        number=request.number,
                        step=None if reason else amendment.step,
                        reason=reason,
                    )
                )

    async def _announce_forever(self) -> None:
        while not self._is_stopping:
            await self.in_pool.wait()
            await self.bus.announce(self._make_presence())
            await asyncio.sleep(min(0.5, self.bus.limits.renewal_interval))

    def _make_presence(self) -> Presence:
        return Presence(
            worker=self.name,
            pools=("default",),
            models=self.models or (self.model,),
            device="paper and ink",
            rows=32,
            free=32,
            software_build="test",
            has_picture_check=self.has_picture_check,
            upscale_ms=self.enlarge_ms,
        )

    def _find_verdict(self, job: Job, verdicts: dict[int, Verdict], image: int) -> Verdict:
        return verdicts.get(image, "passed") if job.check and self.has_picture_check else "unchecked"

    async def _run_job(self, delivered: BusMessage[Job]) -> None:
        job = delivered.value
        claim = await self.bus.claim_job(job.id, self.name)
        if claim is None:
            await delivered.nak()
            return
        await self._publish_result(JobStarted(job=job.id, epoch=claim.epoch, worker=self.name))
        heartbeats = asyncio.create_task(self._send_heartbeats(delivered, claim))
        work = asyncio.create_task(self._paint(job, claim))
        try:
            await asyncio.wait([heartbeats, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                await delivered.ack()
                await self.bus.release_claim(claim)
        finally:
            await cancel_task(work)
            await cancel_task(heartbeats)

    async def _paint(self, job: Job, claim: Claim) -> None:
        if isinstance(job.task, UpscaleTask):
            await self._upscale(job, job.task, claim)
        else:
            await self._run_steps(job, job.task, claim)

    async def _send_heartbeats(self, delivered: BusMessage[Job], claim: Claim) -> None:
        """Renews the claim. Ends when it is lost: a worker that slept too long drops the job, as a real one does."""
        while await self.bus.renew_claim(claim):
            await delivered.in_progress()
            await asyncio.sleep(self.bus.limits.renewal_interval)

    async def _run_steps(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        last_shown = 0
        self.recipes[job.id] = recipe
        if self.pause_step == 0:
            self.step_gate.clear()
        for progress in self.loading_progress:
            await self.bus.publish_loading(
                JobModelLoading(job=job.id, epoch=claim.epoch, model=recipe.model, loaded_share=progress)
            )
            await asyncio.sleep(self.speed)
        for step in range(1, recipe.steps + 1):
            if self._is_stopping:
                return
            recipe = self.recipes[job.id]
            self._steps[job.id] = step
            if self.pause_step == step:
                self.step_gate.clear()
            await asyncio.sleep(self.speed)
            while self._is_paused(job.id):
                await asyncio.sleep(0.02)
                if job.id in self._preview_requests and last_shown < step - 1:  # requested during the pause
                    await self._publish_frames(job, recipe, claim, last_shown := step - 1)
            recipe = self.recipes[job.id]
            if job.id in self._cancelled or await self.bus.is_cancelled(job.id):
                await self._publish_result(JobCancelled(job=job.id, epoch=claim.epoch, steps=step - 1, cost=0.1))
                return
            if "impossible" in recipe.concepts[0].text and step == 3:
                reason = "The numbers went out of bounds"
                await self._publish_result(JobFailed(job=job.id, epoch=claim.epoch, reason=reason, blame="model"))
                return
            if job.id in self._preview_requests:
                await self._publish_frames(job, recipe, claim, last_shown := step)
        await self._deliver_pictures(job, self.recipes.pop(job.id), claim)

    def _is_paused(self, job: str) -> bool:
        is_at_gate = not self.step_gate.is_set() and self._steps[job] >= (self.pause_step or 0)
        is_stopped = is_at_gate or job in self._paused
        return is_stopped and not self._is_stopping and job not in self._cancelled

    async def _deliver_pictures(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for image in list_final_images(recipe):
            payload = self.paint(recipe, image, recipe.steps, "PNG")
            with Image.open(io.BytesIO(payload)) as picture:
                size = picture.size
            await self._deliver_file(job, claim, image, payload, size)
            await self._deliver_file(job, claim, image, self._make_ladder(job.id, recipe, image), size, "ladder")
        finished = JobFinished(
            job=job.id, epoch=claim.epoch, cost=0.2, seconds=0.5, ms_per_step=1.0, amendments=recipe.amendments
        )
        await self._publish_result(finished)
        self.finished_jobs.append(job.id)

    async def _publish_frames(self, job: Job, recipe: Recipe, claim: Claim, step: int) -> None:
        seconds_left = (recipe.steps - step) * self.speed
        for image in list_final_images(recipe):
            picture = self.paint(recipe, image, step, "JPEG")
            verdict = (
                self._find_verdict(job, self.preview_verdicts, image) if step >= 0.4 * recipe.steps else "unchecked"
            )
            frame = Frame(
                job=job.id,
                image=image,
                epoch=claim.epoch,
                step=step,
                total_steps=recipe.steps,
                picture=picture,
                seconds_left=seconds_left,
                verdict=verdict,
            )
            await self.bus.publish_frame(frame)

    def _make_ladder(self, job: str, recipe: Recipe, image: int) -> bytes:
        interval = max(4, -(-recipe.steps // 48))
        steps = [step for step in range(interval, recipe.end_step + 1, interval) if step > recipe.first_step] or [
            recipe.end_step
        ]

        def make_latents(step: int) -> bytes | None:
            is_kept = step // interval % self.latents_interval == 0 or step == recipe.end_step < recipe.steps
            return bytes(4 * 4 * 8 * 8) if is_kept else None

        keyframes = tuple(
            Keyframe(step=step, thumbnail=self.paint(recipe, image, step, "WEBP"), latent=make_latents(step))
            for step in steps
        )
        return encode(Ladder(job=job, image=image, total_steps=recipe.steps, shape=(4, 8, 8), keyframes=keyframes))

    async def _upscale(self, job: Job, task: UpscaleTask, claim: Claim) -> None:
        source = Image.open(io.BytesIO(await self.bus.get_blob(task.source, 1 << 24)))
        size = (source.width * task.factor, source.height * task.factor)
        buffer = io.BytesIO()
        source.resize(size, Image.Resampling.LANCZOS).save(buffer, "PNG")
        method = task.method if self.enlarge_ms else "lanczos"
        await self._deliver_file(job, claim, 0, buffer.getvalue(), size, method=method)
        await self._publish_result(JobFinished(job=job.id, epoch=claim.epoch, cost=0.1, seconds=0.1, ms_per_step=0.0))
        self.finished_jobs.append(job.id)

    async def _deliver_file(
        self,
        job: Job,
        claim: Claim,
        image: int,
        payload: bytes,
        size: tuple[int, int],
        kind: Literal["image", "ladder"] = "image",
        method: UpscaleMethod | None = None,
    ) -> None:
        sha = await self.bus.put_blob(payload)
        assert sha == hashlib.sha256(payload).hexdigest()
        await self._publish_result(
            PictureReady(
                job=job.id,
                image=image,
                epoch=claim.epoch,
                kind=kind,
                sha256=sha,
                bytes=len(payload),
                width=size[0],
                height=size[1],
                verdict="unchecked" if kind == "ladder" else self._find_verdict(job, self.verdicts, image),
                method=method,
            )
        )

    async def _publish_result(self, result: Result) -> None:
        await self.bus.publish_result(self.name, result)


async def cancel_task(task: asyncio.Task[None]) -> None:
    """Cancels a task for good. Raises the error that ended it earlier, if any."""
    while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
        task.cancel()
        await asyncio.wait([task], timeout=1)
    if not task.cancelled():
        task.result()
