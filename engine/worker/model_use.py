"""Guards for requests that use a loaded model: one at a time, with a time limit. Loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.families.family import Family
from engine.job import Warm
from engine.shelf import Shelf
from engine.unfit import Unfit

SECONDS = 2.0  # to acquire a model that is in memory


class Turn:
    """Admits one request at a time. Belongs to the event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.is_closed = False
        self._left: asyncio.Timeout | None = None  # of the current request

    @property
    def is_free(self) -> bool:
        return not self._lock.locked() and not self.is_closed

    @asynccontextmanager
    async def take(self, seconds: float) -> AsyncIterator[None]:
        """Run the body alone. Raises `TimeoutError` where it takes longer, or the worker ends."""
        async with self._lock:
            try:
                async with asyncio.timeout(seconds) as self._left:
                    yield
            finally:
                self._left = None

    def close(self) -> None:
        """End the current request: engine and decode worker will not finish it."""
        self.is_closed = True
        if self._left is not None and not self._left.expired():
            self._left.reschedule(0.0)


@asynccontextmanager
async def hold_model(shelf: Shelf, name: str, revision: str) -> AsyncIterator[tuple[Family, Warm]]:
    """Keep a loaded model in the cache for the body. Empty `revision`: any.

    Raises `Unfit` where the model is not in memory at this revision, or `TimeoutError`.
    """
    warm = next((one for one in shelf.warm() if one.name == name and one.loaded), None)
    if warm is None:
        raise Unfit(f"The model {name} is not in memory now: draw something with it first.", "worker")
    if revision not in ("", warm.revision):
        raise Unfit(f"This worker has another version of {name}: try again.", "worker")
    async with asyncio.timeout(SECONDS):
        await shelf.take(name, warm.dtype)
    try:
        yield shelf.families[name], warm
    finally:
        shelf.let_go(name)
