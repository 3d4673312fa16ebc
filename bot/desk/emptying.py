"""Taking the files of deleted jobs away, as far as no other job has the same content.

Knows the store and the picture store. What cannot be removed now stays noted, and is found by a later sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.images.pictures import Pictures
from bot.store import Store, Stored, deleting

log = logging.getLogger(__name__)


class Emptying:
    """Called with what is left of deleted jobs."""

    def __init__(self, store: Store, pictures: Pictures) -> None:
        self._store, self._pictures = store, pictures

    async def __call__(self, left: Sequence[Stored]) -> None:
        for one in left:
            try:
                await self._empty(one)
            except OSError as error:
                log.warning("job %s: a deleted picture is still kept: %s", one.job, error)

    async def _empty(self, one: Stored) -> None:
        """In turn with whoever keeps the same content just now."""
        async with self._pictures.turn(one.sha256):
            if await self._store.ask(deleting.unused, one.sha256):
                await self._pictures.drop(one.sha256)
            await self._store.write(deleting.emptied, one)
