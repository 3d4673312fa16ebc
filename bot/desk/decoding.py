"""Decodes keyframes in full quality for viewers, on a worker that has the exact model in memory.

If no worker can do it now, or it would take long, viewers get the ladder's own thumbnails (a linear map of the latents)
without a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from bot.images.estimates import are_readable, estimates
from bot.store import Record
from engine.bus import NobodyAnswers
from engine.job import ESTIMATES, DecodeRequest, Presence, Recipe, decode_ms

log = logging.getLogger(__name__)

AT_MOST_MS = 5000.0  # for a ladder, by calibration
PAUSE = 30.0  # seconds before a silent model is asked for again: a film must not wait for it

Ask = Callable[[str, DecodeRequest], Awaitable[tuple[bytes, ...]]]


class Decoding:
    """Asks workers to decode ladders. `ask` raises `NobodyAnswers` or ConnectionError."""

    def __init__(
        self, ask: Ask, workers: Callable[[], Mapping[str, Presence]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._workers, self._clock = ask, workers, clock
        self._silent: dict[tuple[str, str], float] = {}  # (pool, model) → not asked for until then

    async def decode(self, record: Record, ladder: bytes) -> tuple[bytes, ...]:
        """Return a thumbnail for each keyframe; empty: show the ladder's own."""
        recipe, pool = record.task, record.pool
        if not isinstance(recipe, Recipe) or self._clock() < self._silent.get((pool, recipe.model), 0.0):
            return ()
        latents = await asyncio.to_thread(estimates, ladder)
        if not latents or not self._is_quick(recipe, pool, len(latents)):
            return ()
        request = DecodeRequest(
            model=recipe.model, revision=recipe.revision, width=recipe.width, height=recipe.height, tile=recipe.tile,
            latents=latents,
        )  # fmt: skip
        made = await self._answer(pool, request)
        if not made:
            self._silent[pool, recipe.model] = self._clock() + PAUSE
        return made

    def _is_quick(self, recipe: Recipe, pool: str, count: int) -> bool:
        """Return whether a live worker of the pool has this revision in memory and decodes fast enough."""
        there = (one for one in self._workers().values() if one.v >= ESTIMATES and pool in one.pools)
        wanted = (recipe.model, recipe.revision, True)
        found = (warm for one in there for warm in one.models if (warm.name, warm.revision, warm.loaded) == wanted)
        costs = [decode_ms(warm, recipe.width, recipe.height, count) for warm in found]
        return bool(recipe.revision and costs) and min(costs) <= AT_MOST_MS

    async def _answer(self, pool: str, request: DecodeRequest) -> tuple[bytes, ...]:
        """Ask a worker, and validate its answer."""
        try:
            made = await self._ask(pool, request)
        except (NobodyAnswers, ConnectionError) as error:
            log.debug("showing a ladder's own thumbnails: %s", error)
            return ()
        return made if await asyncio.to_thread(are_readable, made) else ()
