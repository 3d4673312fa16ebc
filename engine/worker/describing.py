"""Image-to-prompt requests: one at a time, forward by forward, between the steps of running jobs.

A forward takes about a second at most, so no step waits longer than that. `engine.describing` does the computation.
Every failure becomes an error sentence in the reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from engine import describing
from engine.blame import DeviceLost, check_device
from engine.cores import Kind
from engine.describing import Draw, Row
from engine.families.family import Family
from engine.job import DescribeReply, DescribeRequest, Dtype, Warm
from engine.lane import Lane
from engine.memory import is_out_of_memory
from engine.shelf import Shelf
from engine.unfit import Unfit
from engine.worker.model_use import Turn, hold_model
from engine.worker.thread import EngineThread

log = logging.getLogger(__name__)

MOST_ROWS = 16  # in a forward
FORWARD_MS = 1000.0  # for a forward and its texts, by calibration, if every row had its own text
SECONDS = 45.0  # for one request: the bot does not wait much longer
BUSY = "This worker is describing another picture: try again in a moment."
SLOW = "This worker is too slow, or too busy, to describe a picture now."
ENDING = "This worker is shutting down: try again in a moment."


class Describing:
    """Belongs to the event loop. `rows`: the most rows of a forward on this worker."""

    def __init__(self, thread: EngineThread, lane: Lane, shelf: Shelf, rows: int) -> None:
        self._thread, self._lane, self._shelf, self._rows = thread, lane, shelf, rows
        self._turn = Turn()

    @property
    def models(self) -> tuple[str, ...]:
        """Models in memory: none is loaded for a request."""
        return tuple(warm.name for warm in self._shelf.warm() if warm.loaded)

    async def answer(self, asked: DescribeRequest) -> DescribeReply:
        """Return the prediction errors, or the reason why there are none. Raises only cancellation."""
        if not self._turn.is_free:
            return DescribeReply(error=ENDING if self._turn.is_closed else BUSY, elsewhere=True)
        return await self._answer(asked)

    def close(self) -> None:
        """End the current request at once: the engine's thread will not finish it."""
        self._turn.close()

    async def _answer(self, asked: DescribeRequest) -> DescribeReply:
        try:
            async with (
                self._turn.take(SECONDS),
                hold_model(self._shelf, asked.model, asked.revision) as (family, warm),
            ):
                return DescribeReply(errors=await self._errors(asked, family, warm))
        except Unfit as error:
            return DescribeReply(error=error.sentence[:500], elsewhere=error.blame == "worker")
        except TimeoutError:
            return DescribeReply(error=ENDING if self._turn.is_closed else SLOW, elsewhere=True)
        except DeviceLost:  # the engine's thread finds out too, and ends the worker
            return DescribeReply(error="This worker has lost its device.", elsewhere=True)
        except Exception:
            log.exception("a picture could not be described")
            return DescribeReply(error="This worker failed to describe the picture.")

    async def _errors(self, asked: DescribeRequest, family: Family, warm: Warm) -> tuple[tuple[float, ...], ...]:
        latents = await asyncio.wrap_future(self._lane.latents(asked.model, asked.picture))
        drawn = await asyncio.to_thread(describing.draws, family, latents, asked.first, asked.draws)
        rows = max(1, min(MOST_ROWS, self._rows, int(FORWARD_MS / (warm.row_ms + warm.encode_ms + 1e-3))))
        found: list[float] = []
        for chunk in describing.chunks(len(asked.texts), asked.draws, rows):
            found += await self._forward(family, asked.texts, drawn, chunk, rows, warm.dtype)
        return tuple(tuple(found[at : at + asked.draws]) for at in range(0, len(found), asked.draws))

    async def _forward(
        self, family: Family, texts: Sequence[str], drawn: Sequence[Draw], asked: Sequence[Row], rows: int, dtype: Dtype
    ) -> list[float]:
        """Run one forward in the engine's thread; split it in halves where memory runs out. Raises `Unfit`."""
        try:
            work = partial(describing.errors, family, texts, drawn, asked, rows, dtype)
            return await self._thread.call(lambda _: _blamed(family, work), Kind.PICTURE)
        except _TooLarge:
            if rows == 1:
                raise Unfit("This worker has not enough memory to describe a picture.", "worker") from None
        half = rows // 2
        parts = [asked[at : at + half] for at in range(0, len(asked), half)]
        return [error for part in parts for error in await self._forward(family, texts, drawn, part, half, dtype)]


class _TooLarge(Exception):
    """There was not enough memory for so many rows."""


def _blamed(family: Family, work: Callable[[], list[float]]) -> list[float]:
    """Run `work`. Raises `Unfit`, `_TooLarge`, or `DeviceLost` where the device is lost."""
    try:
        return work()
    except Unfit:
        raise
    except Exception as error:
        check_device(family.device)
        if is_out_of_memory(error):
            raise _TooLarge from error
        log.error("a picture could not be described", exc_info=error)
        raise Unfit("The model failed at this picture.", "model") from error
