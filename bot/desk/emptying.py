"""Removes the files of deleted jobs that no other job shares.

A file that cannot be removed now stays noted, and a later sweep finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bot.images.pictures import PictureStore
from bot.store import Store, StoredPicture, deleting

log = logging.getLogger(__name__)


class FileCleanup:
    """Call it with the files of deleted jobs."""

    def __init__(self, store: Store, picture_store: PictureStore) -> None:
        self._store, self._picture_store = store, picture_store

    async def __call__(self, files: Sequence[StoredPicture]) -> None:
        for file in files:
            try:
                await self._remove_file(file)
            except OSError as error:
                log.warning("job %s: a deleted picture is still kept: %s", file.job, error)

    async def _remove_file(self, file: StoredPicture) -> None:
        """Remove one file, in turn with tasks that store the same content."""
        async with self._picture_store.lock(file.sha256):
            if await self._store.read(deleting.is_unused, file.sha256):
                await self._picture_store.delete(file.sha256)
            await self._store.write(deleting.delete_picture_row, file)
