"""The decode worker: a thread that turns the engine's events into previews, pictures and ladders.

On a CPU decodes and steps take turns, each with all cores (`engine.device.core_turns`); on a GPU they run side by side.
It decodes one thing at a time: finished pictures first, then previews, then ladders. If nothing waits, it fits preview
maps bit by bit. A picture depends on its recipe and latents alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import PriorityQueue
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from msgspec.structs import replace
from PIL import Image, ImageFilter, ImageOps

from engine import contract as wire
from engine.batching.fault_isolation import reject_before_start
from engine.batching.input_pictures import MASK_THRESHOLD, InitLatents, encode_square, load_init_latents, load_pictures
from engine.batching.job_images import check_job, encode_change
from engine.batching.trajectory import LatentKeyframe, LatentsDone, StepDone
from engine.contract import (
    MAX_ESTIMATE_BYTES,
    Change,
    Frame,
    Job,
    JobRejected,
    Keyframe,
    Ladder,
    Recipe,
    Verdict,
    recipe_at_end,
)
from engine.device.core_turns import CoreTurns, Stopwatch, WorkKind, release_team
from engine.models.family import SMALL_MODEL_SIZE, Family, find_judge, is_loaded, with_autoencoder
from engine.models.picture_conditions import PictureConditions
from engine.output.picture_check import JobVerdicts, PictureCheck
from engine.output.previewer import Previewer
from engine.picture_files import encode_jpeg, encode_png, encode_thumbnail, format_parameters
from engine.preview_maps.latent_map import MapStore
from engine.prompt.emphasis import strip_emphasis

log = logging.getLogger(__name__)

PICTURE_PRIORITY, FRAME_PRIORITY, LADDER_PRIORITY, CLOSE_PRIORITY, FIT_PRIORITY = range(5)
FIT_WAIT_SECONDS = 0.05  # seconds that a fit waits for the cores, and all else in this thread for the fit
T = TypeVar("T")


class DecodeWorker:
    """Every method returns at once, with a `concurrent.futures.Future` for its result (`asyncio.wrap_future`)."""

    def __init__(
        self,
        families: Mapping[str, Family],
        picture_check: PictureCheck | None = None,
        map_store: MapStore | None = None,
        cores: CoreTurns | None = None,
    ) -> None:
        self._families = families
        self._map_store = map_store
        self.cores = cores or CoreTurns()
        self.has_picture_check = picture_check is not None
        self._picture_verdicts = JobVerdicts(picture_check, self.cores)  # used only in the thread
        self._previewers: WeakKeyDictionary[Family, Previewer] = WeakKeyDictionary()  # weak: a model may be evicted
        self.on_picture_decoded: Callable[[Recipe, float], None] = lambda recipe, ms: None  # called in the thread
        self._queue: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._sequence = itertools.count()
        self._init_latents: dict[str, InitLatents] = {}  # by job; used only in the thread
        self._prepared_families: WeakSet[Family] = WeakSet()  # used only in the thread
        self._frame_futures: dict[tuple[str, int], Future[Frame]] = {}  # used only by the caller
        arguments = (torch.get_num_threads(),)
        self._thread = threading.Thread(target=self._run_thread, args=arguments, name="decode-worker", daemon=True)
        self._thread.start()

    def prepare_preview(self, model: str) -> None:
        """Fit a preview map for a model that is now in memory, bit by bit while nothing else waits."""
        self._submit(FIT_PRIORITY, lambda: self._prepare_preview(model))

    def encode_init_images(self, job: Job, blobs: Mapping[str, bytes]) -> Future[InitLatents | None]:
        """Encode a job's init images from its blobs (by SHA-256); None: pure noise. The future may raise `JobRejected`.

        With a mask, the init image is kept until the job is forgotten, for compositing.
        """
        return self._submit(PICTURE_PRIORITY, lambda: self._encode_init_images(job, blobs))

    def prepare_pictures(self, job: Job, blobs: Mapping[str, bytes]) -> Future[PictureConditions]:
        """Prepare a job's control and reference pictures for its networks. The future may raise `JobRejected`."""
        return self._submit(PICTURE_PRIORITY, lambda: self._prepare_pictures(job, blobs))

    def encode_change(self, recipe: Recipe, change: Change) -> Future[None]:
        """Encode a change's texts beside the running batch. The future may raise `JobRejected`."""
        encode = partial(encode_change, recipe, change)
        return self._submit(PICTURE_PRIORITY, lambda: self._run_on_upload(recipe.model, encode))

    def encode_for_description(self, model: str, picture: bytes) -> Future[torch.Tensor]:
        """Encode an image for `/describe` at the model's native size. The future may raise `JobRejected`."""
        return self._submit(FRAME_PRIORITY, lambda: self._run_on_upload(model, partial(encode_square, picture)))

    def render_frame(self, event: StepDone, job: Job, epoch: int, seconds_left: float) -> Future[Frame]:
        """Render a live preview. It replaces one that still waits for the same image: only the newest counts."""
        pending = self._frame_futures.get((event.job, event.image))
        if pending is not None:
            pending.cancel()
        future = self._submit(FRAME_PRIORITY, lambda: self._render_frame(event, job, epoch, seconds_left))
        self._frame_futures[event.job, event.image] = future
        return future

    def render_picture(self, event: LatentsDone, job: Job) -> Future[bytes]:
        """Return the finished PNG: the same bytes for the same recipe and latents."""
        return self._submit(PICTURE_PRIORITY, lambda: self._render_picture(event, job))

    def score_candidates(self, candidates: Sequence[LatentsDone], job: Job) -> Future[list[float]]:
        """Return how near each candidate is to the prompt, by the model's judge."""
        return self._submit(PICTURE_PRIORITY, lambda: self._score_candidates(candidates, job))

    def check_picture(self, content: bytes, job: Job) -> Future[Verdict]:
        """Check a finished picture; "unchecked" if the job does not ask for it, or if the check failed."""
        return self._submit(PICTURE_PRIORITY, lambda: self._picture_verdicts.check_final(job, content))

    def encode_ladder(self, event: LatentsDone, job: Job, *, is_for_film: bool = False) -> Future[bytes]:
        """Return the encoded `Ladder`. `is_for_film`: decode the keyframes of a small model, in place of a map."""
        return self._submit(LADDER_PRIORITY, lambda: self._encode_ladder(event, job, is_for_film))

    def decode_thumbnail(self, model: str, x0: torch.Tensor, tile: bool) -> Future[bytes]:
        """Decode one keyframe with the autoencoder, in place of a map. The future may raise `JobRejected`."""
        return self._submit(LADDER_PRIORITY, lambda: self._run_on_upload(model, partial(_decode_thumbnail, x0, tile)))

    def forget_job(self, job: str) -> None:
        """Cancel everything that waits for a job that has left."""
        for key in [key for key in self._frame_futures if key[0] == job]:
            self._frame_futures.pop(key).cancel()
        # queued, in case the job comes once more
        self._submit(PICTURE_PRIORITY, lambda: self._init_latents.pop(job, None))
        self._submit(LADDER_PRIORITY, lambda: self._picture_verdicts.forget_job(job))

    def close(self) -> None:
        """Finish the waiting work, then end the thread."""
        self._submit(CLOSE_PRIORITY, self._stop)
        self._thread.join()

    def _submit(self, priority: int, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((priority, next(self._sequence), lambda: _fulfil_future(future, work)))
        return future

    def _run_thread(self, cores: int) -> None:
        torch.set_num_threads(cores)  # a fixed number: another one gives other last bits
        self._is_running = True
        while self._is_running:
            _, _, work = self._queue.get()
            work()
            if self.cores.is_shared:
                release_team()  # previews take no turn on the cores

    def _stop(self) -> None:
        self._is_running = False

    def _encode_init_images(self, job: Job, blobs: Mapping[str, bytes]) -> InitLatents | None:
        recipe = _recipe_of(job)
        if recipe.start is None:
            return None
        check_job(job, self._families)
        init_latents = self._run_on_upload(recipe.model, partial(load_init_latents, recipe, blobs))
        if init_latents is not None and init_latents.init_image is not None:
            self._init_latents[job.id] = init_latents
        return init_latents

    def _prepare_pictures(self, job: Job, blobs: Mapping[str, bytes]) -> PictureConditions:
        recipe = _recipe_of(job)
        if not recipe.required_blobs:
            return ()
        check_job(job, self._families)
        return self._run_on_upload(recipe.model, partial(load_pictures, recipe, blobs))

    def _run_on_upload(self, model: str, work: Callable[[Family], T]) -> T:
        """Run work on what a member gave. Raises `JobRejected` for anything that goes wrong, or `DeviceLost`."""
        family = self._families[model]
        try:
            with self.cores.hold(WorkKind.OTHER):
                return work(family)
        except JobRejected:
            raise
        except Exception as error:
            raise reject_before_start(error, family.device) from error

    def _render_frame(self, event: StepDone, job: Job, epoch: int, seconds_left: float) -> Frame:
        x0 = event.x0
        recipe = _recipe_of(job)
        assert x0 is not None, "only a watched job's steps carry x0"
        verdict = self._picture_verdicts.check_preview(
            job, event.image, event.step / event.total_steps, lambda: self._decode_x0(recipe, x0)
        )
        is_decoded = self._previewer_of(recipe.model).is_worth_decoding
        picture = (self._decode_tiled if is_decoded else self._render_preview)(recipe, x0)
        return Frame(
            job=event.job,
            image=event.image,
            epoch=epoch,
            step=event.step,
            total_steps=event.total_steps,
            picture=encode_jpeg(picture),
            seconds_left=max(0.0, seconds_left),
            verdict=verdict,
        )

    def _render_preview(self, recipe: Recipe, x0: torch.Tensor) -> Image.Image:
        """Render with the map, which is too cheap to wait for the cores; decode latents that the map does not fit."""
        previewer = self._previewer_of(recipe.model)
        if previewer.can_render(x0):
            return decode_tiled(previewer.render, x0, recipe.tile)
        return self._decode_tiled(recipe, x0)

    def _decode_tiled(self, recipe: Recipe, x0: torch.Tensor) -> Image.Image:
        return decode_tiled(partial(self._decode_x0, recipe), x0, recipe.tile)

    def _decode_x0(self, recipe: Recipe, x0: torch.Tensor) -> Image.Image:
        with self.cores.hold(WorkKind.OTHER):
            return with_autoencoder(self._families[recipe.model], recipe).decode(x0)

    def _previewer_of(self, model: str) -> Previewer:
        """Return the previewer of the model that is in memory now."""
        family = self._families[model]
        if family not in self._previewers:
            self._previewers[family] = Previewer(family, self._map_store)
        return self._previewers[family]

    def _prepare_preview(self, model: str) -> None:
        family = self._families.get(model)
        if family is not None and family not in self._prepared_families:
            self._prepared_families.add(family)
            self._fit_preview_map(model)

    def _fit_preview_map(self, model: str) -> None:
        """Encode one picture of the fit, then requeue the rest behind newer work.

        While a model is being loaded in another number format it has no encoder; its next job resumes the fit.
        """
        family = self._families.get(model)
        if family is None or self._previewer_of(model).is_fitted:
            return
        with self.cores.hold_for_spare(FIT_WAIT_SECONDS) as has_cores:
            if not is_loaded(family):
                self._prepared_families.discard(family)
                return
            if has_cores:
                self._previewer_of(model).fit_one_more()
        self._submit(FIT_PRIORITY, lambda: self._fit_preview_map(model))

    def _render_picture(self, event: LatentsDone, job: Job) -> bytes:
        recipe = _recipe_of(job)
        with self.cores.hold(WorkKind.PICTURE):
            family = with_autoencoder(self._families[recipe.model], recipe)
            stopwatch = Stopwatch()
            picture = decode_tiled(family.finish, event.latents, recipe.tile)
            self.on_picture_decoded(recipe, stopwatch.elapsed_ms())
        picture = composite(picture, self._init_latents.get(job.id))
        factor = picture.width // recipe.width
        return encode_png(picture, format_parameters(recipe, event.image, family.revision, factor, family.upscaler))

    def _score_candidates(self, candidates: Sequence[LatentsDone], job: Job) -> list[float]:
        """Compare the candidates at the recipe's size: the judge sees no finer picture."""
        recipe = _recipe_of(job)
        family = with_autoencoder(self._families[recipe.model], recipe)
        init_latents = self._init_latents.get(job.id)
        pictures = list[Image.Image]()
        judge = find_judge(family)
        assert judge is not None, "the engine refuses such a recipe"
        for candidate in candidates:
            with self.cores.hold(WorkKind.PICTURE):
                pictures.append(composite(decode_tiled(family.decode, candidate.latents, recipe.tile), init_latents))
        with self.cores.hold(WorkKind.PICTURE):
            return judge.score_pictures(pictures, join_concepts(recipe))

    def _encode_ladder(self, event: LatentsDone, job: Job, is_for_film: bool) -> bytes:
        recipe = _recipe_of(job)
        is_decoded = is_for_film and self._families[recipe.model].size <= SMALL_MODEL_SIZE
        render = partial(self._decode_tiled if is_decoded else self._render_preview, recipe)
        is_mapped = not is_decoded and self._previewer_of(recipe.model).can_render(event.latents)
        keyframes = tuple(
            encode_keyframe(keyframe, encode_thumbnail(render(keyframe.x0)), is_mapped) for keyframe in event.keyframes
        )
        steps = recipe.steps
        shape = tuple(event.latents.shape)
        return wire.encode(
            Ladder(job=event.job, image=event.image, total_steps=steps, shape=shape, keyframes=keyframes)
        )


def _fulfil_future(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except JobRejected as error:  # the input is at fault, so no log entry
        future.set_exception(error)
    except Exception as error:  # other jobs go on; the future carries this job's error
        log.exception("the decode worker failed at one item")
        future.set_exception(error)


def _decode_thumbnail(x0: torch.Tensor, tile: bool, family: Family) -> bytes:
    return encode_thumbnail(decode_tiled(family.decode, x0.to(family.device), tile))


def _recipe_of(job: Job) -> Recipe:
    assert isinstance(job.task, Recipe), "only a recipe's job has events"
    return job.task


def encode_latents(latents: torch.Tensor | None) -> bytes | None:
    """Return the latents `[channels, height, width]` as float32, C-order."""
    return None if latents is None else latents.to("cpu", torch.float32).contiguous().numpy().tobytes()


def encode_latents_half(latents: torch.Tensor) -> bytes | None:
    """Return latents `[channels, height, width]` as float16, C-order; None if larger than a keyframe may carry."""
    if 2 * latents.numel() > MAX_ESTIMATE_BYTES:
        return None
    return latents.to("cpu", torch.float16).contiguous().numpy().tobytes()


def encode_keyframe(keyframe: LatentKeyframe, thumbnail_jpeg: bytes, is_mapped: bool) -> Keyframe:
    """Return the wire form. `is_mapped`: a linear map made the thumbnail, so keep x0 to decode it on request."""
    history = None if keyframe.latents is None else encode_latents(keyframe.x0)
    estimate = encode_latents_half(keyframe.x0) if is_mapped else None
    return Keyframe(
        keyframe.step, thumbnail_jpeg, encode_latents(keyframe.latents), history, keyframe.draw_count, estimate
    )


TILE_MARGIN = 4  # latents of the opposite edge around a tile
FEATHER_SHARE = 1 / 256  # of the shorter side: four pixels of 1024, as A1111's mask blur


def decode_tiled(decode: Callable[[torch.Tensor], Image.Image], latents: torch.Tensor, tile: bool) -> Image.Image:
    """Return `decode(latents)` for latents `[channels, height, width]`.

    A tile is decoded with its own opposite edges around it, which are then cut off.
    """
    if not tile:
        return decode(latents)
    height, width = latents.shape[-2:]
    margin = min(TILE_MARGIN, height, width)
    padded = decode(torch.nn.functional.pad(latents[None], (margin,) * 4, mode="circular")[0])
    scale_x = padded.width // (width + 2 * margin)
    scale_y = padded.height // (height + 2 * margin)
    return padded.crop((margin * scale_x, margin * scale_y, (margin + width) * scale_x, (margin + height) * scale_y))


def composite(picture: Image.Image, init_latents: InitLatents | None) -> Image.Image:
    """Composite `picture` inside the mask over the init image outside it, pixel for pixel, with a soft edge."""
    if init_latents is None or init_latents.init_image is None or init_latents.mask_image is None:
        return picture
    background = ImageOps.fit(init_latents.init_image, picture.size, Image.Resampling.LANCZOS)
    mask = ImageOps.fit(init_latents.mask_image, picture.size, Image.Resampling.LANCZOS)
    hard_mask = mask.point([0 if level < MASK_THRESHOLD else 255 for level in range(256)])
    soft_mask = hard_mask.filter(ImageFilter.GaussianBlur(max(1.0, FEATHER_SHARE * min(picture.size))))
    return Image.composite(picture, background, soft_mask)


def choose_candidates(
    job: Job, candidates: Sequence[LatentsDone], scores: Sequence[float]
) -> tuple[Job, list[LatentsDone]]:
    """Return the job with the candidates of the highest scores, best first, and their latents as its pictures.

    Of equal scores the lower candidate wins.
    """
    recipe = job.task
    assert isinstance(recipe, Recipe), "only a recipe has candidates"
    ranking = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1].image))
    chosen = [candidate for _, candidate in ranking[: recipe.count]]
    indices = tuple(candidate.image for candidate in chosen)
    pictures = [dataclasses.replace(candidate, image=image) for image, candidate in enumerate(chosen)]
    return replace(job, task=replace(recipe, chosen_candidates=indices)), pictures


def join_concepts(recipe: Recipe) -> str:
    """Return the plain text that pictures are compared with: the concepts of positive weight, without emphasis.

    Of a steered job they are those of its last step.
    """
    concepts = recipe_at_end(recipe).concepts
    texts = (strip_emphasis(concept.text).strip() for concept in concepts if concept.weight > 0)
    return ", ".join(text for text in texts if text)
