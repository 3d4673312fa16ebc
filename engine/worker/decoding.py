"""Decode requests for keyframes: one request at a time, one keyframe at a time, at lower priority than running jobs.

Every failure becomes an error sentence in the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import numpy as np
import torch

from engine.blame import DeviceLost
from engine.families.family import Family
from engine.job import DecodeReply, DecodeRequest, Warm, decode_ms
from engine.lane import Lane
from engine.shelf import Shelf
from engine.unfit import Unfit
from engine.worker.model_use import Turn, hold_model

log = logging.getLogger(__name__)

MOST_MS = 5000.0  # of one request, by the model's calibration
SECONDS = 10.0  # for one request; the bot does not wait much longer
BUSY = "This worker is busy with other keyframes: try again in a moment."
SLOW = "This worker is too slow, or too busy, to decode these keyframes now."
WRONG = "These latents do not fit the model or the picture's size."


class Decoding:
    """Belongs to the event loop."""

    def __init__(self, lane: Lane, shelf: Shelf) -> None:
        self._lane, self._shelf = lane, shelf
        self._turn = Turn()

    async def answer(self, asked: DecodeRequest) -> DecodeReply:
        """Return the thumbnails, or the reason why there are none. Raises only cancellation."""
        return await self._answer(asked) if self._turn.is_free else DecodeReply(error=BUSY)

    def close(self) -> None:
        """End the current request at once: the decode worker will not finish it."""
        self._turn.close()

    async def _answer(self, asked: DecodeRequest) -> DecodeReply:
        try:
            held = hold_model(self._shelf, asked.model, asked.revision)
            async with self._turn.take(SECONDS), held as (family, warm):
                _check_time(asked, warm)
                return DecodeReply(thumbnails=await self._thumbnails(asked, family))
        except Unfit as error:
            return DecodeReply(error=error.sentence[:500])
        except TimeoutError:
            return DecodeReply(error=SLOW)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DecodeReply(error="This worker has lost its device.")
        except Exception:
            log.exception("keyframes could not be decoded")
            return DecodeReply(error="This worker failed to decode the keyframes.")

    async def _thumbnails(self, asked: DecodeRequest, family: Family) -> tuple[bytes, ...]:
        """Decode one after another, so that a finished job's decode waits for at most one of them."""
        made = list[bytes]()
        for latents in list(tensors(asked, family)):
            future = self._lane.decode_thumbnail(asked.model, latents, asked.tile)
            made.append(await asyncio.wrap_future(future))
        return tuple(made)


def tensors(asked: DecodeRequest, family: Family) -> Iterator[torch.Tensor]:
    """Yield the latents as tensors. Raises `Unfit` where one has the wrong size or is not finite."""
    try:
        shape = family.latent_shape(asked.width, asked.height)
    except ValueError as error:
        raise Unfit(WRONG, "member") from error
    for latents in asked.latents:
        if len(latents) != 2 * shape[0] * shape[1] * shape[2]:
            raise Unfit(WRONG, "member")
        values = np.frombuffer(latents, dtype=np.float16).astype(np.float32)
        if not np.isfinite(values).all():
            raise Unfit(WRONG, "member")
        yield torch.from_numpy(values.reshape(shape))


def _check_time(asked: DecodeRequest, warm: Warm) -> None:
    """Raise `Unfit` where the request would take too long."""
    if decode_ms(warm, asked.width, asked.height, len(asked.latents)) > MOST_MS:
        raise Unfit(SLOW, "worker")
