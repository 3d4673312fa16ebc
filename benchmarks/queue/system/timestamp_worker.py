"""`python -m benchmarks.queue.system.timestamp_worker URL FRAMES PAUSE BYTES`: a worker that sends timestamped previews
and draws nothing.

Eight bytes follow each JPEG's end: the monotonic clock, which all processes of a machine share, when the preview was
handed to the bus. It speaks the real wire contract.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import sys
import time

from PIL import Image

from engine.bus import Bus, BusMessage, Claim
from engine.contract import Frame, Job, JobFailed, JobStarted, ModelProfile, Presence, Recipe

WORKER_NAME = "stamper"
TIMESTAMP = struct.Struct(">d")
HEARTBEAT_SECONDS = 3.0  # seconds; a claim lasts ten
MODEL = ModelProfile(
    name=WORKER_NAME,
    revision="1",
    dtype="float32",
    size=256,
    multiple=8,
    max_pixels=512 * 512,
    tokens=77,
    steps=50,
    sampler="ddpm",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=3.0,
    row_ms=1.0,
    encode_ms=1.0,
    decode_ms=1.0,
)


def add_timestamp(picture: bytes) -> bytes:
    """Append the current time to a preview."""
    return picture + TIMESTAMP.pack(time.monotonic())


def read_timestamp(picture: bytes) -> float:
    """Return when a stamped preview was sent."""
    return TIMESTAMP.unpack(picture[-TIMESTAMP.size :])[0]


def make_jpeg(size: int) -> bytes:
    """Return a JPEG of about `size` bytes: noise at the lowest quality that is large enough."""
    noise = Image.effect_noise((256, 256), 60).convert("RGB")
    content = b""
    for quality in range(5, 96, 5):
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG", quality=quality)
        content = buffer.getvalue()
        if len(content) >= size:
            break
    return content


class TimestampWorker:
    """A worker that takes one job after another and fails each after its previews, which are all that is measured."""

    def __init__(self, bus: Bus, frames: int, pause: float, size: int) -> None:
        self._bus = bus
        self._frames = frames
        self._pause = pause
        self._jpeg = make_jpeg(size)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            while True:
                message = await self._bus.pull_job(["default"], timeout=0.5)
                if message is not None:
                    await self._run_job(message)

    async def _announce(self) -> None:
        while True:
            presence = Presence(
                worker=WORKER_NAME,
                pools=("default",),
                models=(MODEL,),
                device="a clock",
                rows=32,
                free=32,
                software_build="bench",
            )
            await self._bus.announce(presence)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _run_job(self, message: BusMessage[Job]) -> None:
        job = message.value
        claim = await self._bus.claim_job(job.id, WORKER_NAME)
        if claim is None:
            await message.nak()
            return
        await self._bus.publish_result(WORKER_NAME, JobStarted(job=job.id, epoch=claim.epoch, worker=WORKER_NAME))
        await self._send_previews(message, claim)
        failed = JobFailed(job=job.id, epoch=claim.epoch, reason="This was a measurement.", blame="us")
        await self._bus.publish_result(WORKER_NAME, failed)
        await message.ack()
        await self._bus.release_claim(claim)

    async def _send_previews(self, message: BusMessage[Job], claim: Claim) -> None:
        start_time = last_heartbeat = time.monotonic()
        steps = message.value.task.steps if isinstance(message.value.task, Recipe) else 1
        for number in range(self._frames):
            await asyncio.sleep(max(0.0, start_time + number * self._pause - time.monotonic()))
            await self._bus.publish_frame(
                Frame(
                    job=claim.job,
                    image=0,
                    epoch=claim.epoch,
                    step=min(number + 1, steps),
                    total_steps=steps,
                    picture=add_timestamp(self._jpeg),
                    seconds_left=1.0,
                )
            )
            if time.monotonic() - last_heartbeat > HEARTBEAT_SECONDS:
                last_heartbeat = time.monotonic()
                await message.in_progress()
                await self._bus.renew_claim(claim)


async def main(url: str, frames: int, pause: float, size: int) -> None:
    bus = await Bus.connect(url, os.environ["DARKROOM_NATS_TOKEN"], name=WORKER_NAME)
    await bus.declare()
    await TimestampWorker(bus, frames, pause, size).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
