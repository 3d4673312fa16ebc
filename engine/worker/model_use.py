"""Uses a model that is in memory, and keeps it there meanwhile. Loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.families.family import Family
from engine.job import Warm
from engine.shelf import Shelf
from engine.unfit import Unfit

SECONDS = 2.0  # until the model, which is in memory, is ours to use


@asynccontextmanager
async def hold_model(shelf: Shelf, name: str, revision: str) -> AsyncIterator[tuple[Family, Warm]]:
    """Empty `revision`: any. Raises `Unfit` where the model is not in memory at this revision, or `TimeoutError`."""
    warm = next((one for one in shelf.warm() if one.name == name and one.loaded), None)
    if warm is None:
        raise Unfit(f"The model {name} is not in memory just now: draw something with it first.", "worker")
    if revision not in ("", warm.revision):
        raise Unfit(f"This worker has another version of {name} than was asked for: try again.", "worker")
    async with asyncio.timeout(SECONDS):
        await shelf.take(name, warm.dtype)
    try:
        yield shelf.families[name], warm
    finally:
        shelf.let_go(name)
