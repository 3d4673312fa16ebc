"""Draws the pictures of a run: asks the backend, shows its previews, publishes each picture with its keyframes.

A backend's file is checked and encoded anew. The operator's picture check runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple, Protocol

from PIL import Image, ImageOps

from engine.bus import BlobMissing, BrokerUnreachable, Bus
from engine.contract import (
    MAX_FRAME_BYTES,
    MAX_KEYFRAMES,
    Frame,
    ImageToImage,
    Job,
    JobRejected,
    Keyframe,
    Ladder,
    ModelProfile,
    Recipe,
    UpscaleTask,
    Verdict,
    encode,
    find_lacking_feature,
    noise_seed,
    recipe_for_image,
)
from engine.picture_files import (
    encode_jpeg,
    encode_png,
    encode_thumbnail,
    format_parameters,
    open_image,
    read_png_size,
    upscale_by_lanczos,
)
from engine.remote.connection_state import ConnectionState
from engine.remote.drawing import MAX_PICTURE_SECONDS, Backend, BackendBusy, BackendModel, DrawProgress, DrawRequest
from engine.worker.result_publisher import ResultPublisher, fetch_blob
from engine.worker.run import JobRun

log = logging.getLogger(__name__)

MAX_BUSY_ANSWERS = 10  # for one picture


class RunPictures:
    """Belongs to the event loop. Pictures are decoded and encoded in threads."""

    def __init__(
        self, bus: Bus, backend: Backend, state: ConnectionState, publisher: ResultPublisher, verdicts: Verdicts
    ) -> None:
        self._bus = bus
        self._backend = backend
        self._state = state
        self._publisher = publisher
        self._verdicts = verdicts
        self._slots = asyncio.Semaphore(backend.concurrency)

    async def draw_run(self, run: JobRun) -> None:
        """Draw and publish all pictures, and finish the run. Raises `JobRejected` or `BackendUnreachable`."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe)
        model = self._state.models.get(recipe.model)
        profile = self._state.find_profile(recipe.model)
        if model is None or profile is None:
            raise JobRejected(f"The backend no longer offers {recipe.model}.", "worker")
        check_recipe(recipe, profile)
        init_image = await asyncio.to_thread(fit_init_image, recipe, await self._load_blobs(recipe))
        run.last_step_time = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for image in range(recipe.count):
                    group.create_task(self._draw_image(run, image, (model, profile), init_image))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        await self._publisher.finish_run(run)

    async def run_upscale(self, run: JobRun) -> None:
        """Run an upscale job, by Lanczos: no network is here."""
        task = run.job.task
        assert isinstance(task, UpscaleTask)
        try:
            source = await fetch_blob(self._bus, task.source)
            png = await asyncio.to_thread(upscale_by_lanczos, source, task.factor)
            verdict = await self._verdicts.check_final(run.job, png)
        except BlobMissing:
            await self._publisher.fail_run(run, "The picture to upscale is no longer stored.", "us")
        except JobRejected as error:
            await self._publisher.fail_run(run, error.sentence, error.blame)
        else:
            await self._publisher.publish_content(run, 0, "image", png, read_png_size(png), verdict, "lanczos")
            await self._publisher.finish_run(run)

    async def _load_blobs(self, recipe: Recipe) -> Mapping[str, bytes]:
        try:
            return {sha: await fetch_blob(self._bus, sha) for sha in recipe.required_blobs}
        except BlobMissing as error:
            raise JobRejected("The init image was no longer at the broker.", "worker") from error

    async def _draw_image(
        self, run: JobRun, image: int, offer: tuple[BackendModel, ModelProfile], init_image: FittedImages
    ) -> None:
        recipe = run.job.task
        assert isinstance(recipe, Recipe)
        model, profile = offer
        async with self._slots:
            request = make_request(recipe, image, model, init_image)
            previews = ImagePreviews(self._bus, run, image, self._verdicts)
            show = asyncio.create_task(previews.show())
            try:
                async with asyncio.timeout(MAX_PICTURE_SECONDS):
                    content, seconds = await self._draw_patiently(request, previews)
            except TimeoutError as error:
                raise JobRejected("The backend took too long for this picture.", "worker") from error
            finally:
                show.cancel()
                await asyncio.gather(show, return_exceptions=True)
        record_steps(run, image, run.end_step, time.monotonic())
        png = await asyncio.to_thread(finish_picture, content, recipe, image, profile.revision)
        await asyncio.to_thread(self._state.times.record, model, profile, recipe_for_image(recipe, image), seconds)
        verdict = await self._verdicts.check_final(run.job, png)
        await self._publisher.publish_content(run, image, "image", png, read_png_size(png), verdict)
        if run.job.ladder:
            ladder = await asyncio.to_thread(previews.encode_ladder, png)
            await self._publisher.publish_content(run, image, "ladder", ladder, (recipe.width, recipe.height))
        run.unpublished_images.discard(image)

    async def _draw_patiently(self, request: DrawRequest, previews: ImagePreviews) -> tuple[bytes, float]:
        """Draw, and ask again where the backend limits us. Its last refusal counts as an outage.

        Return the picture and the seconds that the backend drew, without waits: they become the price.
        """
        for _ in range(MAX_BUSY_ANSWERS):
            try:
                return await self._draw_timed(request, previews)
            except BackendBusy as error:
                log.info("%s Asking again in %.0f s.", error, error.wait_seconds)
                await asyncio.sleep(error.wait_seconds)
        return await self._draw_timed(request, previews)

    async def _draw_timed(self, request: DrawRequest, previews: ImagePreviews) -> tuple[bytes, float]:
        previews.begin_time = time.monotonic()
        content = await self._backend.draw(request, previews.put)
        self._state.note_picture()
        return content, time.monotonic() - previews.begin_time


def record_steps(run: JobRun, image: int, step: int, moment: float) -> None:
    """Record all steps of an image up to `step`, evenly spread in time: a backend may tell of several at once."""
    done = run.steps_done[image]
    start = run.last_step_time
    for number in range(done + 1, step + 1):
        share = (number - done) / (step - done)
        run.record_step([(image, number)], start + share * (moment - start))


class ImagePreviews:
    """The previews of one picture: the newest is shown to watchers, some are kept as keyframes for films."""

    def __init__(self, bus: Bus, run: JobRun, image: int, verdicts: Verdicts) -> None:
        self._bus = bus
        self._run = run
        self._image = image
        self._verdicts = verdicts
        self.begin_time = 0.0  # when the backend began, on the monotonic clock
        self._newest: bytes | None = None
        self._arrived = asyncio.Event()
        self._keyframes: dict[int, bytes] = {}

    def put(self, progress: DrawProgress) -> None:
        """Note progress and the newest preview; one that is not shown yet is replaced."""
        if progress.begins:
            self.begin_time = time.monotonic()
        first = self._run.first_step
        end = self._run.end_step
        step = min(end - 1, first + int(progress.fraction * (end - first)))
        record_steps(self._run, self._image, step, time.monotonic())
        if progress.preview is not None:
            self._newest = progress.preview
            self._arrived.set()

    async def show(self) -> None:
        """Show previews until cancelled. One that cannot be read is skipped: the picture does not depend on it."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            content = self._newest
            self._newest = None
            if content is None:
                continue
            try:
                await self._show(await asyncio.to_thread(shrink_preview, content))
            except (BrokerUnreachable, JobRejected) as error:
                log.debug("a preview of job %s is skipped: %s", self._run.job.id, error)

    async def _show(self, jpeg: bytes) -> None:
        run = self._run
        step = max(1, self._run.steps_done[self._image])
        self._keyframes[step] = jpeg
        if len(self._keyframes) == MAX_KEYFRAMES:
            self._keyframes = dict(list(self._keyframes.items())[::2])
        if run.is_watched and not run.is_ended and len(jpeg) <= MAX_FRAME_BYTES:
            verdict = await self._verdicts.check_preview(run.job, self._image, step / run.end_step, jpeg)
            frame = Frame(
                job=run.job.id,
                image=self._image,
                epoch=run.claim.epoch,
                step=step,
                total_steps=run.end_step,
                picture=jpeg,
                seconds_left=run.seconds_left,
                verdict=verdict,
            )
            await self._bus.publish_frame(frame)

    def encode_ladder(self, png: bytes) -> bytes:
        """Return its keyframes, the finished picture last. They have no latents: nothing can branch from them."""
        pictures = {step: open_image(jpeg) for step, jpeg in self._keyframes.items() if step < self._run.end_step}
        pictures[self._run.end_step] = open_image(png)
        recipe = self._run.job.task
        assert isinstance(recipe, Recipe)
        keyframes = tuple(Keyframe(step, encode_thumbnail(picture)) for step, picture in sorted(pictures.items()))
        shape = (3, recipe.height, recipe.width)  # of the picture: latents never leave the backend
        return encode(
            Ladder(job=self._run.job.id, image=self._image, total_steps=recipe.steps, shape=shape, keyframes=keyframes)
        )


PREVIEW_SIDE = 512  # pixels of a preview's longest side
MAX_UPSCALE = 8


def check_recipe(recipe: Recipe, profile: ModelProfile) -> None:
    """Raise `JobRejected` for a recipe that the backend cannot draw, whatever asked for it."""
    feature = find_lacking_feature(recipe, profile)
    if feature is not None:
        raise JobRejected(f"{profile.name} is behind another server, which takes no {feature}.", "member")
    if recipe.needs_choice:
        raise JobRejected(f"{profile.name} has no judge that could choose the best pictures.", "worker")
    if recipe.sampler not in profile.samplers:
        raise JobRejected(f"{profile.name} does not take the sampler {recipe.sampler}.", "model")
    if profile.required == "picture" and not isinstance(recipe.start, ImageToImage):
        raise JobRejected(f"{profile.name} edits a picture by words: give it one.", "member")


class FittedImages(NamedTuple):
    """What a job's pictures begin with, as PNG of the recipe's size; None: nothing."""

    picture: bytes | None = None
    mask: bytes | None = None


def fit_init_image(recipe: Recipe, blobs: Mapping[str, bytes]) -> FittedImages:
    """Return the init image that all pictures of a job share. Decodes it: call it in a thread. Raises `JobRejected`."""
    size = (recipe.width, recipe.height)
    start = recipe.start
    if not isinstance(start, ImageToImage):
        return FittedImages()
    picture = _fit_png(blobs[start.pictures[0].sha256], size, "init image", "RGB")
    return FittedImages(picture, _fit_png(blobs[start.mask], size, "mask", "L") if start.mask else None)


def make_request(recipe: Recipe, image: int, model: BackendModel, init_image: FittedImages) -> DrawRequest:
    """Return the request for one image."""
    recipe = recipe_for_image(recipe, image)
    strength = recipe.start.strength if isinstance(recipe.start, ImageToImage) else 1.0
    return DrawRequest(
        model=model,
        prompt=recipe.concepts[0].text,
        negative=recipe.negative,
        seed=noise_seed(recipe, image),
        steps=recipe.steps,
        guidance=recipe.guidance,
        sampler=recipe.sampler,
        width=recipe.width,
        height=recipe.height,
        picture=init_image.picture,
        mask=init_image.mask,
        strength=strength,
        tile=recipe.tile,
        clip_skip=recipe.clip_skip,
        loras=recipe.loras,
    )


def finish_picture(content: bytes, recipe: Recipe, image: int, revision: str) -> bytes:
    """Return a backend's file as a PNG with its recipe, at the recipe's size or a whole multiple of it.

    It is decoded and encoded anew: nothing of the file but its pixels goes on. Raises `JobRejected`.
    """
    picture = open_image(content, "backend's picture", "worker")
    if not is_multiple(picture.size, (recipe.width, recipe.height)):
        picture = ImageOps.fit(picture, (recipe.width, recipe.height), Image.Resampling.LANCZOS)
    return encode_png(picture, format_parameters(recipe, image, revision, is_by_backend=True))


def is_multiple(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether a picture is `wanted` or both of its sides the same small multiple of it: another Darkroom upscales."""
    factor = size[0] // wanted[0]
    return 1 <= factor <= MAX_UPSCALE and size == (factor * wanted[0], factor * wanted[1])


def shrink_preview(content: bytes) -> bytes:
    """Return a backend's preview as a small JPEG. Raises `JobRejected`."""
    picture = open_image(content, "backend's preview", "worker")
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return encode_jpeg(picture)


def _fit_png(content: bytes, size: tuple[int, int], subject: str, mode: str) -> bytes:
    buffer = BytesIO()
    picture = ImageOps.fit(open_image(content, subject), size, Image.Resampling.LANCZOS).convert(mode)
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


class ChecksPictures(Protocol):
    """A check with its verdicts by job (`engine.output.picture_check.JobVerdicts`)."""

    def check_preview(self, job: Job, image: int, steps_share: float, decode_x0: Callable[[], Image.Image]) -> Verdict:
        """Return the verdict on an image's previews, "unchecked" while they show too little."""
        ...

    def check_final(self, job: Job, content: bytes) -> Verdict:
        """Return the verdict on a finished PNG."""
        ...

    def forget_job(self, job: str) -> None: ...


class Verdicts:
    """Belongs to the event loop."""

    def __init__(self, checks: ChecksPictures | None = None) -> None:
        self._checks = checks
        self._thread = ThreadPoolExecutor(1, "picture check")

    @property
    def has_check(self) -> bool:
        return self._checks is not None

    async def check_preview(self, job: Job, image: int, share: float, jpeg: bytes) -> Verdict:
        """Return the verdict on a preview of an image of which `share` is done, 0 to 1."""
        checks = self._checks
        if checks is None or not job.check:
            return "unchecked"
        return await self._run(lambda: checks.check_preview(job, image, share, lambda: open_image(jpeg)))

    async def check_final(self, job: Job, png: bytes) -> Verdict:
        """Return the verdict on a finished picture."""
        checks = self._checks
        if checks is None or not job.check:
            return "unchecked"
        return await self._run(lambda: checks.check_final(job, png))

    def forget_job(self, job: str) -> None:
        """Drop what is known of a job that has left."""
        if self._checks is not None:
            self._thread.submit(self._checks.forget_job, job)

    def close(self) -> None:
        """Drop waiting checks; the current one finishes by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Verdict]) -> Verdict:
        return await asyncio.wrap_future(self._thread.submit(work))
