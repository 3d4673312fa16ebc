"""Removes files that no row names once they are a day old; a crash between writing a file and its row leaves one.

Many of them at once mean a picture store that belongs to another database: then nothing is removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bot.images.pictures import Pictures
from bot.store import Store, Unavailable, deleting

log = logging.getLogger(__name__)

DAY = 86_400.0
SWEEP_SECONDS = DAY
FEW, SHARE, HALF = 50, 0.05, 0.5  # refuse above max(FEW, SHARE of all files), or above HALF of them
TOO_MANY = "%d of %d files in the picture store are named by no job: is it this database's? None is removed"


class Orphans:
    """Sweeps the picture store."""

    def __init__(self, store: Store, pictures: Pictures, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._pictures, self._clock = store, pictures, clock

    async def run(self) -> None:
        """Sweep at the start and each day, until cancelled."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, OSError) as error:
                log.warning("orphans: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> int:
        """Remove orphans; return how many."""
        found, all_of_them = list[str](), 0
        async for names in self._pictures.names(self._clock() - DAY):
            all_of_them += len(names)
            found += await self._store.ask(deleting.unnamed, names)
        if len(found) > min(HALF * all_of_them, max(FEW, SHARE * all_of_them)):
            log.error(TOO_MANY, len(found), all_of_them)
            return 0
        return sum([await self._drop(name) for name in found])

    async def _drop(self, name: str) -> bool:
        """Remove one file, in turn with tasks that store the same content; check first that no row names it now."""
        async with self._pictures.turn(name):
            if not await self._store.ask(deleting.unnamed, [name]):
                return False
            await self._pictures.drop(name)
        log.info("picture %s was named by no job: removed", name)
        return True
