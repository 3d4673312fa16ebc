"""Removes the files of deleted jobs that no other job shares.

A file that cannot be removed now stays noted, and a later sweep finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.images.pictures import Pictures
from bot.store import Store, Stored, deleting

log = logging.getLogger(__name__)


class Emptying:
    """Call it with the files of deleted jobs."""

    def __init__(self, store: Store, pictures: Pictures) -> None:
        self._store, self._pictures = store, pictures

    async def __call__(self, left: Sequence[Stored]) -> None:
        for one in left:
            try:
                await self._empty(one)
            except OSError as error:
                log.warning("job %s: a deleted picture is still kept: %s", one.job, error)

    async def _empty(self, one: Stored) -> None:
        """Remove one file, in turn with tasks that store the same content."""
        async with self._pictures.turn(one.sha256):
            if await self._store.ask(deleting.unused, one.sha256):
                await self._pictures.drop(one.sha256)
            await self._store.write(deleting.emptied, one)
