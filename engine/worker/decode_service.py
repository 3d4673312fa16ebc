"""Decode requests for keyframes: one request at a time, one keyframe at a time, at lower priority than running jobs.

Every failure becomes an error sentence in the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import numpy as np
import torch

from engine.batching.fault_isolation import DeviceLost
from engine.contract import DecodeReply, DecodeRequest, ModelProfile, estimate_decode_ms
from engine.contract.rejection import JobRejected
from engine.model_cache.cache import ModelCache
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.worker.model_use import RequestSlot, use_model

log = logging.getLogger(__name__)

MAX_DECODE_MS = 5000.0  # of one request, by the model's calibration
TIMEOUT_SECONDS = 10.0  # for one request; the bot does not wait much longer
BUSY_ERROR = "This worker is busy with other keyframes: try again in a moment."
SLOW_ERROR = "This worker is too slow, or too busy, to decode these keyframes now."
WRONG_LATENTS_ERROR = "These latents do not fit the model or the picture's size."


class DecodeService:
    """Belongs to the event loop."""

    def __init__(self, decode_worker: DecodeWorker, model_cache: ModelCache) -> None:
        self._decode_worker = decode_worker
        self._model_cache = model_cache
        self._slot = RequestSlot()

    async def answer_request(self, request: DecodeRequest) -> DecodeReply:
        """Return the thumbnails, or the reason why there are none. Raises only cancellation."""
        return await self._answer_request(request) if self._slot.is_free else DecodeReply(error=BUSY_ERROR)

    def close(self) -> None:
        """End the current request at once: the decode worker will not finish it."""
        self._slot.close()

    async def _answer_request(self, request: DecodeRequest) -> DecodeReply:
        try:
            model_use = use_model(self._model_cache, request.model, request.revision)
            async with self._slot.hold_slot(TIMEOUT_SECONDS), model_use as (family, info):
                _check_time(request, info)
                return DecodeReply(thumbnails=await self._decode_thumbnails(request, family))
        except JobRejected as error:
            return DecodeReply(error=error.sentence[:500])
        except TimeoutError:
            return DecodeReply(error=SLOW_ERROR)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DecodeReply(error="This worker has lost its device.")
        except Exception:
            log.exception("keyframes could not be decoded")
            return DecodeReply(error="This worker failed to decode the keyframes.")

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


def _check_time(request: DecodeRequest, info: ModelProfile) -> None:
    """Raise `JobRejected` where the request would take too long."""
    if estimate_decode_ms(info, request.width, request.height, len(request.latents)) > MAX_DECODE_MS:
        raise JobRejected(SLOW_ERROR, "worker")
