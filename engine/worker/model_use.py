"""Guards for requests that use a loaded model: one at a time, with a time limit. Loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from engine.contract import ModelProfile
from engine.contract.rejection import JobRejected
from engine.model_cache.cache import ModelCache
from engine.models.family import Family

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
