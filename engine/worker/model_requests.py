"""Requests that use a model in memory beside running jobs: describing a picture, and decoding keyframes.

Each kind answers one request at a time, in small pieces between the steps of jobs: a forward takes about a second at
most (`engine.batching.diffusion_classifier`), and keyframes are decoded one by one. Every failure becomes an error
sentence in the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import torch

from engine.batching import diffusion_classifier
from engine.batching.diffusion_classifier import ClassifierRow, Noising
from engine.batching.fault_isolation import DeviceLost, check_device
from engine.contract import (
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    Dtype,
    JobRejected,
    ModelProfile,
    estimate_decode_ms,
)
from engine.device.core_turns import WorkKind, compute_in_thread
from engine.device.memory import is_out_of_memory
from engine.model_cache.cache import ModelCache
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.worker.engine_thread import EngineThread

log = logging.getLogger(__name__)

MAX_ROWS = 16  # in a forward
FORWARD_MS = 1000.0  # for a forward and its texts, by calibration, if every row had its own text
DESCRIBE_TIMEOUT_SECONDS = 45.0  # for one request: the bot does not wait much longer
DESCRIBE_BUSY_ERROR = "This worker is describing another picture: try again in a moment."
DESCRIBE_SLOW_ERROR = "This worker is too slow, or too busy, to describe a picture now."
STOPPING_ERROR = "This worker is shutting down: try again in a moment."


class DescribeService:
    """Belongs to the event loop. `rows`: the most rows of a forward on this worker."""

    def __init__(self, thread: EngineThread, decode_worker: DecodeWorker, model_cache: ModelCache, rows: int) -> None:
        self._thread = thread
        self._decode_worker = decode_worker
        self._model_cache = model_cache
        self._rows = rows
        self._slot = RequestSlot()

    @property
    def models(self) -> tuple[str, ...]:
        """Models in memory: none is loaded for a request."""
        return tuple(info.name for info in self._model_cache.list_models() if info.loaded)

    async def answer_request(self, request: DescribeRequest) -> DescribeReply:
        """Return the prediction errors, or the reason why there are none. Raises only cancellation."""
        if not self._slot.is_free:
            error = STOPPING_ERROR if self._slot.is_closed else DESCRIBE_BUSY_ERROR
            return DescribeReply(error=error, may_retry_elsewhere=True)
        try:
            async with (
                self._slot.hold_slot(DESCRIBE_TIMEOUT_SECONDS),
                use_model(self._model_cache, request.model, request.revision) as (family, info),
            ):
                return DescribeReply(errors=await self._compute_errors(request, family, info))
        except JobRejected as error:
            return DescribeReply(error=error.sentence[:500], may_retry_elsewhere=error.blame == "worker")
        except TimeoutError:
            error = STOPPING_ERROR if self._slot.is_closed else DESCRIBE_SLOW_ERROR
            return DescribeReply(error=error, may_retry_elsewhere=True)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DescribeReply(error="This worker has lost its device.", may_retry_elsewhere=True)
        except Exception:
            log.exception("a picture could not be described")
            return DescribeReply(error="This worker failed to describe the picture.")

    def close(self) -> None:
        """End the current request at once: the engine's thread will not finish it."""
        self._slot.close()

    async def _compute_errors(
        self, request: DescribeRequest, family: Family, info: ModelProfile
    ) -> tuple[tuple[float, ...], ...]:
        latents = await asyncio.wrap_future(self._decode_worker.encode_for_description(request.model, request.picture))
        draws = await compute_in_thread(diffusion_classifier.noise_image, family, latents, request.first, request.draws)
        rows = max(1, min(MAX_ROWS, self._rows, int(FORWARD_MS / (info.row_ms + info.encode_ms + 1e-3))))
        errors: list[float] = []
        for chunk in diffusion_classifier.split_rows(len(request.texts), request.draws, rows):
            errors += await self._run_forward(family, request.texts, draws, chunk, rows, info.dtype)
        return tuple(tuple(errors[start : start + request.draws]) for start in range(0, len(errors), request.draws))

    async def _run_forward(
        self,
        family: Family,
        texts: Sequence[str],
        draws: Sequence[Noising],
        batch: Sequence[ClassifierRow],
        rows: int,
        dtype: Dtype,
    ) -> list[float]:
        """Run one forward in the engine's thread; split it in halves where memory runs out. Raises `JobRejected`."""
        try:
            work = partial(diffusion_classifier.prediction_errors, family, texts, draws, batch, rows, dtype)
            return await self._thread.call(lambda _: _run_checked(family, work), WorkKind.PICTURE)
        except _BatchTooLarge:
            if rows == 1:
                raise JobRejected("This worker has not enough memory to describe a picture.", "worker") from None
        half_rows = rows // 2
        halves = [batch[start : start + half_rows] for start in range(0, len(batch), half_rows)]
        return [
            error for part in halves for error in await self._run_forward(family, texts, draws, part, half_rows, dtype)
        ]


class _BatchTooLarge(Exception):
    """There was not enough memory for so many rows."""


def _run_checked(family: Family, work: Callable[[], list[float]]) -> list[float]:
    """Run `work`. Raises `JobRejected`, `_BatchTooLarge`, or `DeviceLost` where the device is lost."""
    try:
        return work()
    except JobRejected:
        raise
    except Exception as error:
        check_device(family.device)
        if is_out_of_memory(error):
            raise _BatchTooLarge from error
        log.error("a picture could not be described", exc_info=error)
        raise JobRejected("The model failed at this picture.", "model") from error


MAX_DECODE_MS = 5000.0  # of one request, by the model's calibration
DECODE_TIMEOUT_SECONDS = 10.0  # for one request; the bot does not wait much longer
DECODE_BUSY_ERROR = "This worker is busy with other keyframes: try again in a moment."
DECODE_SLOW_ERROR = "This worker is too slow, or too busy, to decode these keyframes now."
WRONG_LATENTS_ERROR = "These latents do not fit the model or the picture's size."


class DecodeService:
    """Belongs to the event loop."""

    def __init__(self, decode_worker: DecodeWorker, model_cache: ModelCache) -> None:
        self._decode_worker = decode_worker
        self._model_cache = model_cache
        self._slot = RequestSlot()

    async def answer_request(self, request: DecodeRequest) -> DecodeReply:
        """Return the thumbnails, or the reason why there are none. Raises only cancellation."""
        if not self._slot.is_free:
            return DecodeReply(error=DECODE_BUSY_ERROR)
        try:
            model_use = use_model(self._model_cache, request.model, request.revision)
            async with self._slot.hold_slot(DECODE_TIMEOUT_SECONDS), model_use as (family, info):
                if estimate_decode_ms(info, request.width, request.height, len(request.latents)) > MAX_DECODE_MS:
                    raise JobRejected(DECODE_SLOW_ERROR, "worker")
                return DecodeReply(thumbnails=await self._decode_thumbnails(request, family))
        except JobRejected as error:
            return DecodeReply(error=error.sentence[:500])
        except TimeoutError:
            return DecodeReply(error=DECODE_SLOW_ERROR)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DecodeReply(error="This worker has lost its device.")
        except Exception:
            log.exception("keyframes could not be decoded")
            return DecodeReply(error="This worker failed to decode the keyframes.")

    def close(self) -> None:
        """End the current request at once: the decode worker will not finish it."""
        self._slot.close()

    async def _decode_thumbnails(self, request: DecodeRequest, family: Family) -> tuple[bytes, ...]:
        """Decode one after another, so that a finished job's decode waits for at most one of them."""
        thumbnails = list[bytes]()
        for latents in list(parse_latents(request, family)):
            future = self._decode_worker.decode_thumbnail(request.model, latents, request.tile)
            thumbnails.append(await asyncio.wrap_future(future))
        return tuple(thumbnails)


def parse_latents(request: DecodeRequest, family: Family) -> Iterator[torch.Tensor]:
    """Yield the latents as tensors. Raises `JobRejected` where one has the wrong size or is not finite."""
    try:
        shape = family.latent_shape(request.width, request.height)
    except ValueError as error:
        raise JobRejected(WRONG_LATENTS_ERROR, "member") from error
    for latents in request.latents:
        if len(latents) != 2 * shape[0] * shape[1] * shape[2]:
            raise JobRejected(WRONG_LATENTS_ERROR, "member")
        values = np.frombuffer(latents, dtype=np.float16).astype(np.float32)
        if not np.isfinite(values).all():
            raise JobRejected(WRONG_LATENTS_ERROR, "member")
        yield torch.from_numpy(values.reshape(shape))


ACQUIRE_SECONDS = 2.0  # to acquire a model that is in memory


class RequestSlot:
    """Admits one request at a time. Belongs to the event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.is_closed = False
        self._timeout: asyncio.Timeout | None = None  # of the current request

    @property
    def is_free(self) -> bool:
        return not self._lock.locked() and not self.is_closed

    @asynccontextmanager
    async def hold_slot(self, seconds: float) -> AsyncGenerator[None]:
        """Run the body alone. Raises `TimeoutError` where it takes longer, or the worker ends."""
        async with self._lock:
            try:
                async with asyncio.timeout(seconds) as self._timeout:
                    yield
            finally:
                self._timeout = None

    def close(self) -> None:
        """End the current request: engine and decode worker will not finish it."""
        self.is_closed = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)


@asynccontextmanager
async def use_model(model_cache: ModelCache, name: str, revision: str) -> AsyncGenerator[tuple[Family, ModelProfile]]:
    """Keep a loaded model in the cache for the body. Empty `revision`: any.

    Raises `JobRejected` where the model is not in memory at this revision, or `TimeoutError`.
    """
    info = next(
        (candidate for candidate in model_cache.list_models() if candidate.name == name and candidate.loaded), None
    )
    if info is None:
        raise JobRejected(f"The model {name} is not in memory now: draw something with it first.", "worker")
    if revision not in ("", info.revision):
        raise JobRejected(f"This worker has another version of {name}: try again.", "worker")
    async with asyncio.timeout(ACQUIRE_SECONDS):
        await model_cache.acquire(name, info.dtype)
    try:
        yield model_cache.families[name], info
    finally:
        model_cache.release(name)
