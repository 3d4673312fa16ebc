"""Some workers as one process: jobs take a given time, frames come as fast as one decoding lane goes.

`python -m loopback.easel URL SECONDS LONGER RATE`, the broker's token in the environment. Prints one line of JSON for
each job that ended: its id, and when, on the machine's monotonic clock. Speaks the true wire contract, loads no torch.
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

from PIL import Image

from engine.bus import Bus, Claim, Delivered, Unreachable
from engine.job import MAX_ROWS, Finished, Frame, Job, Ladder, Presence, Recipe, Result, Rung, Started, encode
from painter import Painter, stop

FRAMES = 200  # a second in all: what one decoding lane does at 5 ms a frame
BEAT = 4.0  # seconds; a lease lasts ten
WORKERS = tuple(f"easel-{number}" for number in range(16))  # with as many rows as 2,000 grids with guidance take


class Easel(Painter):
    """Every job takes `seconds` from its start, every second one `longer`; at most `rate` of them end in a second."""

    def __init__(self, bus: Bus, seconds: float, longer: float, rate: float) -> None:
        super().__init__(bus, WORKERS[0])
        self.rate = rate
        self.turns = itertools.cycle(WORKERS)
        self.durations = itertools.cycle((seconds, longer))
        self.open: OrderedDict[str, tuple[Recipe, Claim, float, float]] = OrderedDict()
        self._slot = 0.0
        base = Image.effect_noise((64, 64), 60).convert("RGB")
        self._pictures = [_bytes(base.rotate(angle), "PNG") for angle in range(0, 360, 5)]
        self._frame = [_bytes(base.rotate(angle), "JPEG") for angle in range(0, 360, 5)]
        self._rungs = tuple(Rung(step=step, thumbnail=_bytes(base, "WEBP")) for step in range(4, 21, 4))
        self._serial = itertools.count()

    async def run(self) -> None:
        """A broker that is slow for a moment is waited for."""
        async with asyncio.TaskGroup() as group:
            for keep_up in (self._listen_wants(), self._listen_cancels(), self._announce(), self._show()):
                group.create_task(keep_up)
            while True:
                try:
                    delivered = await self.bus.pull(["default"], timeout=0.5)
                except Unreachable as error:
                    print(error, file=sys.stderr)
                else:
                    if delivered is not None:
                        group.create_task(self._patiently(delivered))

    async def _patiently(self, delivered: Delivered[Job]) -> None:
        try:
            await self._work(delivered)
        except Unreachable as error:  # it is delivered again
            print(error, file=sys.stderr)

    async def _announce(self) -> None:
        while True:
            for worker in WORKERS:
                await self.bus.announce(self._presence_of(worker))
            await asyncio.sleep(0.5)

    def _presence_of(self, worker: str) -> Presence:
        return Presence(
            worker=worker, pools=("default",), models=(self.model,), device="a simulated device", rows=MAX_ROWS,
            free=MAX_ROWS, build="bench",
        )  # fmt: skip

    async def _work(self, delivered: Delivered[Job]) -> None:
        job, duration = delivered.value, next(self.durations)
        claim = await self.bus.claim(job.id, next(self.turns))
        if claim is None or not isinstance(job.task, Recipe):
            await delivered.nak()
            return
        now = time.monotonic()
        self.open[job.id] = (job.task, claim, now, now + duration)
        await self._tell(Started(job=job.id, epoch=claim.epoch, worker=claim.worker))
        beats = asyncio.create_task(self._beat(delivered, claim))
        try:
            await asyncio.sleep(duration)
            self._slot = max(self._slot + 1 / self.rate, time.monotonic())
            await asyncio.sleep(self._slot - time.monotonic())
            await self._end(job, job.task, claim)
        finally:
            self.open.pop(job.id, None)
            await stop(beats)
        await delivered.ack()
        await self.bus.release(claim)

    async def _beat(self, delivered: Delivered[Job], claim: Claim) -> None:
        while True:
            await asyncio.sleep(BEAT)
            await delivered.in_progress()
            await self.bus.renew(claim)

    async def _show(self) -> None:
        """Job after job shows where it is, as far as somebody looks."""
        while True:
            began = time.monotonic()
            sent = 0
            for name in [one for one in self.open if one in self._wanted][:1]:
                self.open.move_to_end(name)
                sent = await self._frames_of(name)
            await asyncio.sleep(max(0.002, sent / FRAMES - (time.monotonic() - began)))

    async def _frames_of(self, name: str) -> int:
        recipe, claim, began, ends = self.open[name]
        now = time.monotonic()
        step = min(recipe.steps - 1, int(recipe.steps * (now - began) / (ends - began)))
        for image in range(recipe.count):
            picture = self._frame[next(self._serial) % len(self._frame)]
            await self.bus.publish_frame(
                Frame(
                    job=name, image=image, epoch=claim.epoch, step=step, of=recipe.steps, picture=picture,
                    seconds_left=max(0.0, ends - now),
                )
            )  # fmt: skip
        return recipe.count

    async def _tell(self, result: Result) -> None:
        """In the name of the worker that has the job."""
        await self.bus.publish_result(self.open[result.job][1].worker, result)

    async def _end(self, job: Job, recipe: Recipe, claim: Claim) -> None:
        for image in range(recipe.count):
            picture = _unique(self._pictures[next(self._serial) % len(self._pictures)], f"{job.id} {image}")
            await self._hand_in(job, claim, image, picture, (64, 64))
            ladder = Ladder(job=job.id, image=image, of=recipe.steps, shape=(4, 8, 8), rungs=self._rungs)
            await self._hand_in(job, claim, image, encode(ladder), (64, 64), "ladder")
        await self._tell(Finished(job=job.id, epoch=claim.epoch, cost=0.2, seconds=1.0, ms_per_step=1.0))
        print(json.dumps({"job": job.id, "at": time.monotonic()}), flush=True)


def _bytes(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()


def _unique(png: bytes, text: str) -> bytes:
    """The same pixels as a file of its own: a chunk more before the end."""
    chunk = b"tEXt" + b"Comment\0" + text.encode()
    return png[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[-12:]


async def main(url: str, seconds: float, longer: float, rate: float) -> None:
    bus = await Bus.connect(url, os.environ["DARKROOM_NATS_TOKEN"])
    await bus.declare()
    await Easel(bus, seconds, longer, rate).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(float(each) for each in sys.argv[2:5])))
