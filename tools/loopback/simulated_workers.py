"""Several simulated workers in one process: jobs take a given time, frames come as fast as one decode worker sends.

`python -m tools.loopback.simulated_workers URL SECONDS LONGER RATE`, with the broker's token in the environment. Prints
a JSON line for each ended job: its id, and when, on the machine's monotonic clock. Speaks the real wire contract,
loads no torch.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import struct
import sys
import time
import zlib
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from engine.bus import BrokerUnreachable, Bus, BusMessage, Claim
from engine.contract import (
    MAX_ROWS,
    Frame,
    Job,
    JobFinished,
    JobStarted,
    Keyframe,
    Ladder,
    Presence,
    Recipe,
    Result,
    encode,
)
from tools.painter import PaintingWorker, cancel_task

# what the embedded model draws
DRAWING = Path(__file__).parents[2] / "docs" / "lab" / "cat.png"
SIDE = 256
FRAMES = 200  # a second in all: one decode worker at 5 ms a frame
HEARTBEAT = 4.0  # seconds; a lease lasts ten
WORKERS = tuple(f"easel-{number}" for number in range(16))  # enough rows for 2,000 grids with guidance


class SimulatedWorkers(PaintingWorker):
    """Jobs take `seconds` and `longer_seconds` by turns, from their start. At most `rate` jobs end in a second."""

    def __init__(self, bus: Bus, seconds: float, longer_seconds: float, rate: float) -> None:
        super().__init__(bus, WORKERS[0])
        self.rate = rate
        self.next_worker = itertools.cycle(WORKERS)
        self.next_duration = itertools.cycle((seconds, longer_seconds))
        self.open_jobs: OrderedDict[str, tuple[Recipe, Claim, float, float]] = OrderedDict()
        self._slot = 0.0
        with Image.open(DRAWING) as drawing:
            turned = [drawing.convert("RGB").rotate(angle, fillcolor="white") for angle in range(0, 360, 5)]
        small = [picture.resize((64, 64)) for picture in turned]
        self._pictures = [_encode_image(picture, "PNG") for picture in turned]
        self._frame_pictures = [_encode_image(picture, "JPEG") for picture in small]
        self._keyframes = tuple(
            Keyframe(step=step, thumbnail=_encode_image(small[0], "WEBP")) for step in range(4, 21, 4)
        )
        self._serial = itertools.count()

    async def run(self) -> None:
        """Pulls and works. Waits while the broker does not answer."""
        async with asyncio.TaskGroup() as group:
            for listener in (
                self._watch_preview_requests(),
                self._watch_cancellations(),
                self._announce_forever(),
                self._send_frames(),
            ):
                group.create_task(listener)
            while True:
                try:
                    delivered = await self.bus.pull_job(["default"], timeout=0.5)
                except BrokerUnreachable as error:
                    print(error, file=sys.stderr)
                else:
                    if delivered is not None:
                        group.create_task(self._run_job_tolerantly(delivered))

    async def _run_job_tolerantly(self, delivered: BusMessage[Job]) -> None:
        try:
            await self._run_job(delivered)
        except BrokerUnreachable as error:  # it is delivered again
            print(error, file=sys.stderr)

    async def _announce_forever(self) -> None:
        while True:
            for worker in WORKERS:
                await self.bus.announce(self._presence_of(worker))
            await asyncio.sleep(0.5)

    def _presence_of(self, worker: str) -> Presence:
        return Presence(
            worker=worker,
            pools=("default",),
            models=(self.model,),
            device="a simulated device",
            rows=MAX_ROWS,
            free=MAX_ROWS,
            software_build="bench",
        )

    async def _run_job(self, delivered: BusMessage[Job]) -> None:
        job = delivered.value
        duration = next(self.next_duration)
        claim = await self.bus.claim_job(job.id, next(self.next_worker))
        if claim is None or not isinstance(job.task, Recipe):
            await delivered.nak()
            return
        now = time.monotonic()
        self.open_jobs[job.id] = (job.task, claim, now, now + duration)
        await self._publish_result(JobStarted(job=job.id, epoch=claim.epoch, worker=claim.worker))
        heartbeat = asyncio.create_task(self._send_heartbeats(delivered, claim))
        try:
            await asyncio.sleep(duration)
            self._slot = max(self._slot + 1 / self.rate, time.monotonic())
            await asyncio.sleep(self._slot - time.monotonic())
            await self._deliver(job, job.task, claim)
        finally:
            self.open_jobs.pop(job.id, None)
            await cancel_task(heartbeat)
        await delivered.ack()
        await self.bus.release_claim(claim)

    async def _send_heartbeats(self, delivered: BusMessage[Job], claim: Claim) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await delivered.in_progress()
            await self.bus.renew_claim(claim)

    async def _send_frames(self) -> None:
        """Sends frames of one watched job after another."""
        while True:
            started_at = time.monotonic()
            sent_count = 0
            for name in [one for one in self.open_jobs if one in self._preview_requests][:1]:
                self.open_jobs.move_to_end(name)
                sent_count = await self._send_job_frames(name)
            await asyncio.sleep(max(0.002, sent_count / FRAMES - (time.monotonic() - started_at)))

    async def _send_job_frames(self, name: str) -> int:
        recipe, claim, started_at, ends_at = self.open_jobs[name]
        now = time.monotonic()
        step = min(recipe.steps - 1, int(recipe.steps * (now - started_at) / (ends_at - started_at)))
        for image in range(recipe.count):
            picture = self._frame_pictures[next(self._serial) % len(self._frame_pictures)]
            await self.bus.publish_frame(
                Frame(
                    job=name,
                    image=image,
                    epoch=claim.epoch,
                    step=step,
                    total_steps=recipe.steps,
                    picture=picture,
                    seconds_left=max(0.0, ends_at - now),
                )
            )
        return recipe.count

    async def _publish_result(self, result: Result) -> None:
        """Publishes under the name of the worker that holds the job."""
        await self.bus.publish_result(self.open_jobs[result.job][1].worker, result)

    async def _deliver(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for image in range(recipe.count):
            picture = _make_unique(self._pictures[next(self._serial) % len(self._pictures)], f"{job.id} {image}")
            await self._deliver_file(job, claim, image, picture, (SIDE, SIDE))
            ladder = Ladder(
                job=job.id, image=image, total_steps=recipe.steps, shape=(4, 8, 8), keyframes=self._keyframes
            )
            await self._deliver_file(job, claim, image, encode(ladder), (64, 64), "ladder")
        await self._publish_result(JobFinished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=1.0, ms_per_step=1.0))
        print(json.dumps({"job": job.id, "at": time.monotonic()}), flush=True)


def _encode_image(picture: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format)
    return buffer.getvalue()


def _make_unique(content: bytes, text: str) -> bytes:
    """The same pixels as a distinct file: one more chunk before the end."""
    chunk = b"tEXt" + b"Comment\0" + text.encode()
    return (
        content[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[-12:]
    )


async def main(url: str, seconds: float, longer_seconds: float, rate: float) -> None:
    bus = await Bus.connect(url, os.environ["DARKROOM_NATS_TOKEN"])
    await bus.declare()
    await SimulatedWorkers(bus, seconds, longer_seconds, rate).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(float(each) for each in sys.argv[2:5])))
