"""Removes files from the picture store: those of deleted jobs at once, and those that no row names after a day.

A crash between writing a file and its row leaves a file without a row. Many of them at once mean that the picture store
belongs to another database: then none is removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from bot.domain.periodic import run_periodically
from bot.images.picture_store import PictureStore
from bot.store import Store, StoredPicture
from bot.store.deletion import deletion_steps

log = logging.getLogger(__name__)
DAY_SECONDS = 86_400.0
SWEEP_SECONDS = DAY_SECONDS
# refuse above max(50, 5 % of all files), or half of them
MIN_SUSPICIOUS = 50
MAX_SHARE = 0.05
HARD_SHARE = 0.5
TOO_MANY = "%d of %d files in the picture store are named by no job: is it this database's? None is removed"


DropCopies = Callable[[Collection[str]], Awaitable[None]]


async def drop_nothing(hashes: Collection[str]) -> None:
    """Drop nothing: there are no copies."""


class FileCleanup:
    """Removes the files of deleted jobs: call it with them. `drop_copies` drops copies elsewhere, by SHA-256: films,
    and the broker's.
    """

    def __init__(self, store: Store, picture_store: PictureStore, drop_copies: DropCopies = drop_nothing) -> None:
        self._store = store
        self._picture_store = picture_store
        self._drop_copies = drop_copies

    async def __call__(self, files: Sequence[StoredPicture]) -> None:
        """Remove the files, then the copies, then the rows: after a crash the rows say what is left to do."""
        removed_files: list[StoredPicture] = []
        for file in files:
            try:
                await self._remove_file(file)
            except OSError as error:
                log.warning("job %s: a deleted picture is still kept: %s", file.job, error)
            else:
                removed_files.append(file)
        await self._drop_copies({file.sha256 for file in removed_files})
        for file in removed_files:
            await self._store.write(deletion_steps.delete_picture_row, file)

    async def _remove_file(self, file: StoredPicture) -> None:
        """Remove one file unless another job has the same, in turn with tasks that store the same content."""
        async with self._picture_store.lock(file.sha256):
            if await self._store.query(deletion_steps.is_unused, file.sha256):
                await self._picture_store.delete(file.sha256)


class OrphanFiles:
    """Sweeps the picture store for files that no row names."""

    def __init__(self, store: Store, picture_store: PictureStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._picture_store = picture_store
        self._clock = clock

    async def run(self) -> None:
        """Sweep at the start and each day, until cancelled."""
        await run_periodically(self.sweep, SWEEP_SECONDS, "orphans", log)

    async def sweep(self) -> int:
        """Remove orphans; return how many."""
        orphans = list[str]()
        total = 0
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
