"""`python -m bot.bench.stamper URL FRAMES PAUSE BYTES`: a worker that sends timestamped previews and draws nothing.

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

from engine.bus import Bus, Claim, Delivered
from engine.job import Failed, Frame, Job, Presence, Recipe, Started, Warm

NAME = "stamper"
STAMP = struct.Struct(">d")
BEAT = 3.0  # seconds; a claim lasts ten
MODEL = Warm(
    name=NAME, revision="1", dtype="float32", size=256, multiple=8, max_pixels=512 * 512, tokens=77, steps=50,
    sampler="ddpm", guidance=3.0, row_ms=1.0, encode_ms=1.0, decode_ms=1.0,
)  # fmt: skip


def stamped(picture: bytes) -> bytes:
    """Append the current time to a preview."""
    return picture + STAMP.pack(time.monotonic())


def stamp_of(picture: bytes) -> float:
    """Return when a stamped preview was sent."""
    return STAMP.unpack(picture[-STAMP.size :])[0]


def jpeg(size: int) -> bytes:
    """Return a JPEG of about `size` bytes: noise at the lowest quality that is large enough."""
    noise = Image.effect_noise((256, 256), 60).convert("RGB")
    made = b""
    for quality in range(5, 96, 5):
        out = io.BytesIO()
        noise.save(out, "JPEG", quality=quality)
        made = out.getvalue()
        if len(made) >= size:
            break
    return made


class Stamper:
    """A worker that takes one job after another and fails each after its previews, which are all that is measured."""

    def __init__(self, bus: Bus, frames: int, pause: float, size: int) -> None:
        self._bus, self._frames, self._pause, self._jpeg = bus, frames, pause, jpeg(size)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            while True:
                delivered = await self._bus.pull(["default"], timeout=0.5)
                if delivered is not None:
                    await self._take(delivered)

    async def _announce(self) -> None:
        while True:
            presence = Presence(
                worker=NAME, pools=("default",), models=(MODEL,), device="a clock", rows=32, free=32, build="bench"
            )
            await self._bus.announce(presence)
            await asyncio.sleep(BEAT)

    async def _take(self, delivered: Delivered[Job]) -> None:
        job = delivered.value
        claim = await self._bus.claim(job.id, NAME)
        if claim is None:
            await delivered.nak()
            return
        await self._bus.publish_result(NAME, Started(job=job.id, epoch=claim.epoch, worker=NAME))
        await self._show(delivered, claim)
        failed = Failed(job=job.id, epoch=claim.epoch, reason="This was a measurement.", blame="us")
        await self._bus.publish_result(NAME, failed)
        await delivered.ack()
        await self._bus.release(claim)

    async def _show(self, delivered: Delivered[Job], claim: Claim) -> None:
        began = beaten = time.monotonic()
        steps = delivered.value.task.steps if isinstance(delivered.value.task, Recipe) else 1
        for number in range(self._frames):
            await asyncio.sleep(max(0.0, began + number * self._pause - time.monotonic()))
            await self._bus.publish_frame(
                Frame(
                    job=claim.job, image=0, epoch=claim.epoch, step=min(number + 1, steps), of=steps,
                    picture=stamped(self._jpeg), seconds_left=1.0,
                )
            )  # fmt: skip
            if time.monotonic() - beaten > BEAT:
                beaten = time.monotonic()
                await delivered.in_progress()
                await self._bus.renew(claim)


async def main(url: str, frames: int, pause: float, size: int) -> None:
    bus = await Bus.connect(url, os.environ["DARKROOM_NATS_TOKEN"], name=NAME)
    await bus.declare()
    await Stamper(bus, frames, pause, size).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
