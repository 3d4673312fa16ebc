"""Output of the engine's steps: previews for watchers, pictures and keyframes as blobs.

A blob is stored before the picture that names it is published. Only the newest preview of each image is rendered, at a
pace that leaves the processor to the finished pictures.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Literal, TypeVar

from engine.beginning import Beginning
from engine.bus import Bus, NoBlob, Unreachable
from engine.bus.latest import Latest
from engine.engine import Developed, Stepped
from engine.job import MAX_FRAME_BYTES, Enlarge, Frame, Method, Picture, Recipe, Verdict
from engine.lane import Lane
from engine.unfit import Unfit
from engine.upscale import Enlarged, Upscaler
from engine.worker.outcome import Outcome, insist
from engine.worker.pulse import Pulse
from engine.worker.run import Run

log = logging.getLogger(__name__)

T = TypeVar("T")
REST = 9.0  # rest after a preview, times its duration: previews get a tenth of one core
LONGEST_REST = 0.25
LARGEST_SOURCE = 64 * 1024 * 1024


class Output:
    def __init__(self, bus: Bus, lane: Lane, upscaler: Upscaler, outcome: Outcome, pulse: Pulse) -> None:
        self._bus, self._lane, self._upscaler = bus, lane, upscaler
        self._outcome, self._pulse = outcome, pulse
        self._fresh: Latest[str, Run] = Latest()
        self._waiting = 0
        self._enlarging = asyncio.Lock()

    async def begin(self, run: Run) -> Beginning | None:
        """Fetch and encode the job's init image or branch point; None where it starts from noise. Raises `Unfit`."""
        recipe = run.job.task
        if isinstance(recipe, Recipe):
            self._lane.prepare(recipe.model)
        if not isinstance(recipe, Recipe) or recipe.start is None:
            return None
        try:
            blobs = {one: await insist(partial(self._bus.get_blob, one, LARGEST_SOURCE)) for one in recipe.sources}
        except NoBlob as error:
            # The broker drops old blobs; when the job is dispatched again, its blobs are too.
            raise Unfit("The init image was no longer at the broker.", "worker") from error
        return await self._decoded(self._lane.begin(run.job, blobs))

    def stepped(self, run: Run, event: Stepped) -> None:
        if run.watched and event.x0 is not None:
            run.fresh[event.image] = event
            self._fresh.put(event.job, run)

    async def show(self) -> None:
        """Render and send previews for ever: one image of every job in turn, then the next image of each."""
        while True:
            run = await self._fresh.get()
            event = run.fresh.pop(next(iter(run.fresh)))
            if run.fresh:
                self._fresh.put(event.job, run)
            if run.ended or event.image not in run.todo:
                continue
            began = time.monotonic()
            await self._show(run, event)
            await asyncio.sleep(min(LONGEST_REST, REST * (time.monotonic() - began)))

    async def _show(self, run: Run, event: Stepped) -> None:
        """Send one preview. A failed preview is skipped: the picture does not depend on it."""
        try:
            future = self._lane.frame(event, run.job, run.claim.epoch, run.seconds_left)
            frame: Frame = await asyncio.wrap_future(future)
            if len(frame.picture) <= MAX_FRAME_BYTES and not run.ended:
                await self._bus.publish_frame(frame)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the worker ends; otherwise a newer preview replaced this one
        except Unreachable as error:
            log.debug("a preview of job %s is skipped: %s", event.job, error)
        except Exception:
            log.exception("job %s: a preview failed", event.job)

    async def developed(self, run: Run, event: Developed) -> None:
        """Decode and publish one finished image; the last image finishes the job."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe)
        png = await self._decoded(self._lane.picture(event, run.job))
        verdict = await self._verdict(run, png)
        await self._publish(run, event.image, "image", png, _size(png), verdict)
        if run.job.ladder:
            ladder = await self._decoded(self._lane.ladder(event, run.job))
            await self._publish(run, event.image, "ladder", ladder, (recipe.width, recipe.height))
        run.todo.discard(event.image)
        if not run.todo:
            await self._outcome.finished(run)

    async def _decoded(self, future: Future[T]) -> T:
        """Wait for the decode worker. Its deadline starts anew with each item that it finishes."""
        if self._waiting == 0:
            self._pulse.busy("the decode worker", "decode")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._waiting -= 1
            if self._waiting:
                self._pulse.busy("the decode worker", "decode")
            else:
                self._pulse.rest("the decode worker")

    async def _verdict(self, run: Run, png: bytes) -> Verdict:
        """Check the finished picture itself, independently of its previews."""
        if not (run.job.check and self._lane.checks):
            return "unchecked"
        return await self._decoded(self._lane.verdict(png, run.job))

    async def _publish(
        self, run: Run, image: int, kind: Literal["image", "ladder"], content: bytes, size: tuple[int, int],
        verdict: Verdict = "unchecked", method: Method | None = None,
    ) -> None:  # fmt: skip
        sha = await insist(lambda: self._bus.put_blob(content))
        picture = Picture(
            job=run.job.id, image=image, epoch=run.claim.epoch, kind=kind, sha256=sha, bytes=len(content),
            width=size[0], height=size[1], verdict=verdict, method=method,
        )  # fmt: skip
        await self._outcome.picture(run, picture)

    async def enlarge(self, run: Run) -> None:
        """Run an upscale job."""
        task = run.job.task
        assert isinstance(task, Enlarge)
        try:
            source = await insist(lambda: self._bus.get_blob(task.source, LARGEST_SOURCE))
            async with self._enlarging:
                made = await self._enlarged(source, task)
        except NoBlob:
            await self._outcome.failed(run, "The picture to upscale is no longer stored.", "us")
        except Unfit as error:
            await self._outcome.failed(run, error.sentence, error.blame)
        else:
            verdict = await self._verdict(run, made.png)
            await self._publish(run, 0, "image", made.png, _size(made.png), verdict, made.method)
            await self._outcome.finished(run)

    async def _enlarged(self, source: bytes, task: Enlarge) -> Enlarged:
        """Upscale the picture. The deadline is per tile: a large picture takes a slow network long."""
        left = threading.Event()

        def beat() -> None:
            if left.is_set():
                raise Unfit("Nobody waits for this upscale any more.", "member")
            self._pulse.busy("the upscaler", "decode")

        beat()
        future = self._upscaler.enlarge(source, task.factor, task.method, beat)
        future.add_done_callback(lambda _: self._pulse.rest("the upscaler"))
        try:
            return await asyncio.wrap_future(future)
        finally:
            left.set()


def _size(png: bytes) -> tuple[int, int]:
    """Return width and height from the header (PNG specification, 11.2.2 IHDR)."""
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)
