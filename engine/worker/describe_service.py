"""Image-to-prompt requests: one at a time, forward by forward, between the steps of running jobs.

A forward takes about a second at most, so no step waits longer than that. `engine.batching.diffusion_classifier` does
the computation. Every failure becomes an error sentence in the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from engine.batching import diffusion_classifier
from engine.batching.diffusion_classifier import ClassifierRow, Noising
from engine.batching.fault_isolation import DeviceLost, check_device
from engine.contract import DescribeReply, DescribeRequest, Dtype, ModelProfile
from engine.contract.rejection import JobRejected
from engine.device.core_turns import WorkKind
from engine.device.memory import is_out_of_memory
from engine.device.threads import compute_in_thread
from engine.model_cache.cache import ModelCache
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.worker.engine_thread import EngineThread
from engine.worker.model_use import RequestSlot, use_model

log = logging.getLogger(__name__)

MAX_ROWS = 16  # in a forward
FORWARD_MS = 1000.0  # for a forward and its texts, by calibration, if every row had its own text
TIMEOUT_SECONDS = 45.0  # for one request: the bot does not wait much longer
BUSY_ERROR = "This worker is describing another picture: try again in a moment."
SLOW_ERROR = "This worker is too slow, or too busy, to describe a picture now."
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
            return DescribeReply(error=STOPPING_ERROR if self._slot.is_closed else BUSY_ERROR, may_retry_elsewhere=True)
        return await self._answer_request(request)

    def close(self) -> None:
        """End the current request at once: the engine's thread will not finish it."""
        self._slot.close()

    async def _answer_request(self, request: DescribeRequest) -> DescribeReply:
        try:
            async with (
                self._slot.hold_slot(TIMEOUT_SECONDS),
                use_model(self._model_cache, request.model, request.revision) as (family, info),
            ):
                return DescribeReply(errors=await self._compute_errors(request, family, info))
        except JobRejected as error:
            return DescribeReply(error=error.sentence[:500], may_retry_elsewhere=error.blame == "worker")
        except TimeoutError:
            return DescribeReply(error=STOPPING_ERROR if self._slot.is_closed else SLOW_ERROR, may_retry_elsewhere=True)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DescribeReply(error="This worker has lost its device.", may_retry_elsewhere=True)
        except Exception:
            log.exception("a picture could not be described")
            return DescribeReply(error="This worker failed to describe the picture.")

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
