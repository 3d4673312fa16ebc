"""Removes files from the picture store: those of deleted jobs at once, and those that no row names after a day.

A crash between writing a file and its row leaves a file without a row. Many of them at once mean that the picture store
belongs to another database: then none is removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from bot.domain.periodic import run_periodically
from bot.images.picture_store import PictureStore
from bot.store import Store, StoredPicture
from bot.store.deletion import deletion_steps

log = logging.getLogger(__name__)
DAY_SECONDS = 86_400.0
SWEEP_SECONDS = DAY_SECONDS
MIN_SUSPICIOUS, MAX_SHARE, HARD_SHARE = 50, 0.05, 0.5  # refuse above max(50, 5 % of all files), or half of them
TOO_MANY = "%d of %d files in the picture store are named by no job: is it this database's? None is removed"


class FileCleanup:
    """Removes the files of deleted jobs: call it with them."""

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
            if await self._store.query(deletion_steps.is_unused, file.sha256):
                await self._picture_store.delete(file.sha256)
            await self._store.write(deletion_steps.delete_picture_row, file)


class OrphanFiles:
    """Sweeps the picture store for files that no row names."""

    def __init__(self, store: Store, picture_store: PictureStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._picture_store, self._clock = store, picture_store, clock

    async def run(self) -> None:
        """Sweep at the start and each day, until cancelled."""
        await run_periodically(self.sweep, SWEEP_SECONDS, "orphans", log)

    async def sweep(self) -> int:
        """Remove orphans; return how many."""
        orphans, total = list[str](), 0
        async for names in self._picture_store.list_names(self._clock() - DAY_SECONDS):
            total += len(names)
            orphans += await self._store.query(deletion_steps.find_unreferenced, names)
        if len(orphans) > min(HARD_SHARE * total, max(MIN_SUSPICIOUS, MAX_SHARE * total)):
            log.error(TOO_MANY, len(orphans), total)
            return 0
        return sum([await self._remove_file(name) for name in orphans])

    async def _remove_file(self, name: str) -> bool:
        """Remove one file, in turn with tasks that store the same content; check first that no row names it now."""
        async with self._picture_store.lock(name):
            if not await self._store.query(deletion_steps.find_unreferenced, [name]):
                return False
            await self._picture_store.delete(name)
        log.info("picture %s was named by no job: removed", name)
        return True
