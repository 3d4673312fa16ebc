"""Decodes keyframes in full quality for viewers, on a worker that has the exact model in memory.

If no worker can do it now, or it would take long, viewers get the ladder's own thumbnails without a message. Those are
a linear map of the latents.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping

from cachetools import TTLCache

from bot.pictures.image_codec import UnreadableImage
from bot.pictures.ladder_film import MAX_THUMBNAIL_PIXELS
from bot.pictures.thumbnail_decoder import read_estimates
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.store import JobRecord
from engine.bus import NoWorkerAnswers
from engine.contract import DecodeRequest, Presence, Recipe, estimate_decode_ms

log = logging.getLogger(__name__)

MAX_DECODE_MS = 5000.0  # for a ladder, by calibration
RETRY_SECONDS = 30.0  # seconds until we ask for a silent model again: a film must not wait for it

RequestDecode = Callable[[str, DecodeRequest], Awaitable[tuple[bytes, ...]]]


class LadderDecoder:
    """Asks workers to decode ladders. `request_decode` raises `NoWorkerAnswers` or ConnectionError."""

    def __init__(
        self,
        request_decode: RequestDecode,
        workers: Callable[[], Mapping[str, Presence]],
        picture_decoder: UploadDecoder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request_decode = request_decode
        self._workers = workers
        self._picture_decoder = picture_decoder
        self._silent_models: TTLCache[tuple[str, str], None] = TTLCache(
            math.inf, RETRY_SECONDS, timer=clock
        )  # in pools

    async def decode(self, record: JobRecord, ladder: bytes) -> tuple[bytes, ...]:
        """Return a thumbnail for each keyframe; empty: show the ladder's own."""
        recipe = record.task
        pool = record.pool
        if not isinstance(recipe, Recipe) or (pool, recipe.model) in self._silent_models:
            return ()
        latents = await asyncio.to_thread(read_estimates, ladder)
        if not latents or not self._is_quick(recipe, pool, len(latents)):
            return ()
        request = DecodeRequest(
            model=recipe.model,
            revision=recipe.revision,
            width=recipe.width,
            height=recipe.height,
            tile=recipe.tile,
            latents=latents,
        )
        thumbnails = await self._request_thumbnails(pool, request)
        if not thumbnails:
            self._silent_models[pool, recipe.model] = None
        return thumbnails

    def _is_quick(self, recipe: Recipe, pool: str, count: int) -> bool:
        """Return whether a live worker of the pool has this revision in memory and decodes fast enough."""
        capable_workers = (worker for worker in self._workers().values() if pool in worker.pools)
        required = (recipe.model, recipe.revision, True)
        models = (
            model_profile
            for worker in capable_workers
            for model_profile in worker.models
            if (model_profile.name, model_profile.revision, model_profile.loaded) == required
        )
        costs = [estimate_decode_ms(model_profile, recipe.width, recipe.height, count) for model_profile in models]
        return bool(recipe.revision and costs) and min(costs) <= MAX_DECODE_MS

    async def _request_thumbnails(self, pool: str, request: DecodeRequest) -> tuple[bytes, ...]:
        """Ask a worker, and validate its answer."""
        try:
            thumbnails = await self._request_decode(pool, request)
            await self._picture_decoder.check_pictures(thumbnails, MAX_THUMBNAIL_PIXELS)
        except (NoWorkerAnswers, UnreadableImage, OSError) as error:
            log.debug("showing a ladder's own thumbnails: %s", error)
            return ()
        return thumbnails
