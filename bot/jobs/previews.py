"""Live previews: frames from the workers to the feed, and requests for them to the workers. No SQL per frame.

Progress of model loading takes the same way, watched or not: it is a few bytes.

It drops frames of unknown jobs, of older epochs, and those that are no JPEG: they would be stale in a moment anyway. It
blurs frames of jobs with the picture check until their image has passed, before any front end has them. A sandboxed
process decodes a frame before this one does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from bot.domain.events import Feed, JobProgress, ModelLoading
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.pictures.image_codec import MAX_FRAME_PIXELS, UnreadableImage, blur_picture
from bot.pictures.uploads.upload_decoder import UploadDecoder
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Frame

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0  # seconds; a worker keeps a request for ten
JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(eq=False)
class PreviewRelay:
    """Run `publish_frames`, `publish_loadings` and `request_frames` as tasks."""

    bus: Bus
    active_jobs: ActiveJobs
    feed: Feed
    decoder: UploadDecoder
    clock: Callable[[], float] = time.time

    async def publish_frames(self) -> None:
        """Publish every useful frame to the feed."""
        while True:
            try:
                async for frame in self.bus.watch_frames():
                    if not frame.picture.startswith(JPEG_MAGIC):
                        continue
                    active_job = self.active_jobs.record_frame(frame, self.clock())
                    if active_job is None or (picture := await self._public_frame(frame, active_job)) is None:
                        continue
                    if frame.job in self.active_jobs.by_id:  # it may have ended meanwhile
                        pictures = {frame.image: picture}
                        step = max(active_job.step, frame.step)
                        self.feed.publish(JobProgress(frame.job, step, frame.total_steps, frame.seconds_left, pictures))
            except BrokerUnreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def _public_frame(self, frame: Frame, active_job: ActiveJob) -> bytes | None:
        """Return the frame as everybody may see it; None if it must be blurred and cannot be read."""
        if not active_job.record.check or frame.verdict == "passed":
            return frame.picture
        try:
            await self.decoder.check_pictures([frame.picture], MAX_FRAME_PIXELS)
            return await asyncio.to_thread(blur_picture, frame.picture, "JPEG", max_pixels=MAX_FRAME_PIXELS)
        except (UnreadableImage, OSError) as error:
            log.warning("job %s: a preview is left out: %s", frame.job, error)
            return None

    async def publish_loadings(self) -> None:
        """Publish the loading progress of models that jobs wait for."""
        while True:
            try:
                async for loading in self.bus.watch_loadings():
                    if self.active_jobs.record_loading(loading, self.clock()) is not None:
                        size = self.bus.model_progress.get_model_size(loading.model)
                        self.feed.publish(ModelLoading(loading.job, loading.model, loading.loaded_share, size))
            except BrokerUnreachable as error:
                log.warning("previews: %s", error)
                await asyncio.sleep(1.0)

    async def request_frames(self) -> None:
        """Tell the workers which jobs are watched: at once when a viewer joins, then repeatedly while any stays."""
        jobs = None
        renewed_at = -math.inf
        while True:
            now = time.monotonic()
            if jobs is None or now - renewed_at >= REQUEST_SECONDS:
                jobs = set(self.active_jobs.by_id)
                renewed_at = now
            try:
                for job in [job for job in jobs if job in self.active_jobs.by_id and self.feed.is_watched(job)]:
                    await self.bus.request_previews(job)
            except BrokerUnreachable as error:
                log.warning("previews: %s", error)
            jobs = await self._next_joined(renewed_at + REQUEST_SECONDS - time.monotonic())

    async def _next_joined(self, seconds: float) -> set[str] | None:
        """Wait up to `seconds` for viewers; return the jobs that they joined."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self.feed.viewer_joined.wait()
        except TimeoutError:
            return set()
        return self.feed.take_joined_jobs()
