"""Output of the engine's steps: previews for watchers, pictures and keyframes as blobs.

A blob is stored before the picture that names it is published. Only the newest preview of each image is rendered, at a
pace that leaves the processor to the finished pictures.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from engine.batching.engine import LatentsDone, StepDone
from engine.batching.input_pictures import InitLatents
from engine.batching.job_images import has_new_texts
from engine.bus import BlobMissing, BrokerUnreachable, Bus
from engine.bus.connection_base import LatestByKey
from engine.contract import MAX_FRAME_BYTES, AmendmentRequest, Frame, Job, JobRejected, Recipe, UpscaleTask, Verdict
from engine.models.picture_conditions import PictureConditions
from engine.output.decode_worker import DecodeWorker, choose_candidates
from engine.output.upscaler import UpscaledPicture, Upscaler
from engine.picture_files import read_png_size
from engine.worker.result_publisher import ResultPublisher, fetch_blob
from engine.worker.run import JobRun
from engine.worker.worker_life import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")
REST_FACTOR = 19.0  # rest after a preview, times its duration: short previews get a twentieth of one core
MAX_REST_SECONDS = 0.25
MAX_OWED_REST_SECONDS = 1.0  # previews that show changes take no rest, and others make up for at most this


class RunOutput:
    def __init__(
        self,
        bus: Bus,
        decode_worker: DecodeWorker,
        upscaler: Upscaler,
        result_publisher: ResultPublisher,
        watchdog: Watchdog,
    ) -> None:
        self._bus = bus
        self._decode_worker = decode_worker
        self._upscaler = upscaler
        self._result_publisher = result_publisher
        self._watchdog = watchdog
        self._preview_queue: LatestByKey[str, JobRun] = LatestByKey()
        # queued jobs whose change waits
        self._hurried_jobs = set[str]()
        self._has_hurried_jobs = asyncio.Event()
        self._rest_until = 0.0
        self._pending_decodes = 0
        self._upscale_lock = asyncio.Lock()

    async def load_inputs(self, run: JobRun) -> tuple[InitLatents | None, PictureConditions]:
        """Fetch and encode the job's init image or branch point, None: it starts from noise, and its other pictures.

        Raises `JobRejected`.
        """
        recipe = run.job.task
        if isinstance(recipe, Recipe):
            self._decode_worker.prepare_preview(recipe.model)
        if not isinstance(recipe, Recipe) or not recipe.required_blobs:
            return None, ()
        try:
            blobs = {sha: await fetch_blob(self._bus, sha) for sha in recipe.required_blobs}
        except BlobMissing as error:
            # The broker drops old blobs; when the job is dispatched again, its blobs are too.
            subject = "A picture of this job" if recipe.start is None else "The init image"
            raise JobRejected(f"{subject} was no longer at the broker.", "worker") from error
        pictures = await self._wait_for_decode(self._decode_worker.prepare_pictures(run.job, blobs))
        return await self._wait_for_decode(self._decode_worker.encode_init_images(run.job, blobs)), pictures

    async def prepare_texts(self, run: JobRun, request: AmendmentRequest) -> None:
        """Encode the texts of a change before the engine needs them. Raises `JobRejected`.

        Where steps and other work take turns on the cores, the engine encodes them itself between two steps: here they
        would take as long, and the change would miss a step.
        """
        assert isinstance(run.job.task, Recipe)
        if not self._decode_worker.cores.is_shared and has_new_texts(run.job.task, request.change):
            await self._wait_for_decode(self._decode_worker.encode_change(run.job.task, request.change))

    def queue_preview(self, run: JobRun, event: StepDone) -> None:
        """Queue a preview for watchers."""
        recipe = run.job.task
        if not isinstance(recipe, Recipe) or not recipe.shows_image(event.image):
            return
        if run.is_watched and event.x0 is not None:
            run.pending_previews[event.image] = event
            self._queue_pending(run)

    def _queue_pending(self, run: JobRun) -> None:
        """Queue a job for the preview that it has: at the front, and without a rest before it, if a change waits."""
        if any(map(run.shows_change, run.pending_previews.values())):
            self._preview_queue.put_first(run.job.id, run)
            self._hurried_jobs.add(run.job.id)
            self._has_hurried_jobs.set()
        else:
            self._preview_queue.put(run.job.id, run)

    def hurry_preview(self, run: JobRun) -> None:
        """Send the first preview that shows the job's newest change before those of others and without a rest."""
        run.unshown_changes.append(run.amendments[-1].step)

    async def send_previews(self) -> None:
        """Render and send previews for ever: one image of every job in turn, then the next image of each."""
        while True:
            run = await self._preview_queue.get()
            self._hurried_jobs.discard(run.job.id)
            event = run.take_preview()
            if run.pending_previews:
                self._queue_pending(run)
            if run.is_ended or event.image not in run.unpublished_images:
                continue
            start = time.monotonic()
            await self._send_preview(run, event)
            await self._rest(time.monotonic() - start)

    async def _rest(self, duration: float) -> None:
        """Rest after a preview that took so long, until a change waits to be shown; the next rest is longer then."""
        now = time.monotonic()
        self._rest_until = max(now, self._rest_until) + min(MAX_REST_SECONDS, REST_FACTOR * duration)
        self._rest_until = min(self._rest_until, now + MAX_OWED_REST_SECONDS)
        if not self._hurried_jobs:
            self._has_hurried_jobs.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest_until - now):
                    await self._has_hurried_jobs.wait()

    async def _send_preview(self, run: JobRun, event: StepDone) -> None:
        """Send one preview. A failed preview is skipped: the picture does not depend on it."""
        try:
            future = self._decode_worker.render_frame(event, run.job, run.claim.epoch, run.seconds_left)
            frame: Frame = await asyncio.wrap_future(future)
            if len(frame.picture) <= MAX_FRAME_BYTES and not run.is_ended:
                await self._bus.publish_frame(frame)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the worker ends; otherwise a newer preview replaced this one
        except BrokerUnreachable as error:
            log.debug("a preview of job %s is skipped: %s", event.job, error)
        except Exception:
            log.exception("job %s: a preview failed", event.job)

    async def publish_image(self, run: JobRun, event: LatentsDone) -> None:
        """Decode and publish one finished image; the last image finishes the job. Candidates wait for the choice."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe)
        if recipe.needs_choice:
            run.candidates[event.image] = event
            if len(run.candidates) == recipe.drawn_count:
                await self._publish_chosen(run)
            return
        await self._publish_image(run, event, run.job)
        run.unpublished_images.discard(event.image)
        if not run.unpublished_images:
            await self._result_publisher.finish_run(run)

    async def _publish_chosen(self, run: JobRun) -> None:
        """Publish the candidates that the judge finds nearest to the prompt, and finish the job."""
        candidates = [run.candidates[image] for image in sorted(run.candidates)]
        scores = await self._wait_for_decode(self._decode_worker.score_candidates(candidates, run.job))
        job, events = choose_candidates(run.job, candidates, scores)
        run.unpublished_images.clear()  # previews that still wait show candidates, not the pictures
        for event in events:
            await self._publish_image(run, event, job)
        assert isinstance(job.task, Recipe)
        await self._result_publisher.finish_run(run, job.task.chosen_candidates)

    async def _publish_image(self, run: JobRun, event: LatentsDone, job: Job) -> None:
        """Publish picture and keyframes. `job` is the run's, with the choice if there was one."""
        assert isinstance(job.task, Recipe)
        png = await self._wait_for_decode(self._decode_worker.render_picture(event, job))
        verdict = await self._check_picture(run, png)
        await self._result_publisher.publish_content(run, event.image, "image", png, read_png_size(png), verdict)
        if job.ladder:
            ladder = await self._wait_for_decode(self._decode_worker.encode_ladder(event, job))
            await self._result_publisher.publish_content(
                run, event.image, "ladder", ladder, (job.task.width, job.task.height)
            )

    async def _wait_for_decode(self, future: Future[T]) -> T:
        """Wait for the decode worker. Its deadline starts anew with each item that it finishes."""
        if self._pending_decodes == 0:
            self._watchdog.start_phase("the decode worker", "decode")
        self._pending_decodes += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._pending_decodes -= 1
            if self._pending_decodes:
                self._watchdog.start_phase("the decode worker", "decode")
            else:
                self._watchdog.end_phase("the decode worker")

    async def _check_picture(self, run: JobRun, png: bytes) -> Verdict:
        """Check the finished picture itself, independently of its previews."""
        if not (run.job.check and self._decode_worker.has_picture_check):
            return "unchecked"
        return await self._wait_for_decode(self._decode_worker.check_picture(png, run.job))

    async def run_upscale(self, run: JobRun) -> None:
        """Run an upscale job."""
        task = run.job.task
        assert isinstance(task, UpscaleTask)
        try:
            source = await fetch_blob(self._bus, task.source)
            async with self._upscale_lock:
                upscaled = await self._upscale(source, task)
        except BlobMissing:
            await self._result_publisher.fail_run(run, "The picture to upscale is no longer stored.", "us")
        except JobRejected as error:
            await self._result_publisher.fail_run(run, error.sentence, error.blame)
        else:
            verdict = await self._check_picture(run, upscaled.png)
            await self._result_publisher.publish_content(
                run, 0, "image", upscaled.png, read_png_size(upscaled.png), verdict, upscaled.method
            )
            await self._result_publisher.finish_run(run)

    async def _upscale(self, source: bytes, task: UpscaleTask) -> UpscaledPicture:
        """Upscale the picture. The deadline is per tile: a large picture takes a slow network long."""
        is_abandoned = threading.Event()

        def report_activity() -> None:
            if is_abandoned.is_set():
                raise JobRejected("Nobody waits for this upscale any more.", "member")
            self._watchdog.start_phase("the upscaler", "decode")

        report_activity()
        future = self._upscaler.upscale(source, task.factor, task.method, report_activity)
        future.add_done_callback(lambda _: self._watchdog.end_phase("the upscaler"))
        try:
            return await asyncio.wrap_future(future)
        finally:
            is_abandoned.set()
