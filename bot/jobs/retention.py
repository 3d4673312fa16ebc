"""Retention: removes old finished jobs, the oldest pictures when storage is full, and files that no row names.

It works in small steps; after a crash the next sweep finds unfinished removals. `bot.store.deletion.retention` decides
what it may remove. A crash between writing a file and its row leaves a file without a row. Many of them at once mean
that the picture store belongs to another database: then none is removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from bot.domain.concurrency import run_periodically
from bot.pictures.picture_store import PictureStore
from bot.store import Store, StoredPicture
from bot.store.deletion import deletion_steps, retention
from bot.store.deletion.retention import RETENTION_REASONS, DeletionReason

log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
SWEEP_SECONDS = 600.0
GRACE_SECONDS = 3600.0  # size limits spare jobs that ended just now: their authors may still mark favourites
REASON_SECONDS = 400 * DAY_SECONDS  # how long the reason of a removal is kept


@dataclass(frozen=True)
class RetentionLimits:
    """How long jobs are kept, and how many bytes of pictures. None: no limit."""

    max_seconds: float | None = None
    max_bytes: int | None = None


@dataclass(eq=False)
class Retention:
    """Sweeps periodically. `remove_files` removes the files of deleted jobs that no other job shares."""

    store: Store
    remove_files: Callable[[Sequence[StoredPicture]], Awaitable[None]]
    limits: RetentionLimits
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Sweep periodically until cancelled."""
        await run_periodically(self.sweep, SWEEP_SECONDS, "retention", log)

    async def sweep(self) -> None:
        """Finish earlier removals; then remove by age, then by size."""
        await self._finish_removals()
        await self._remove_by_age()
        await self._remove_by_size()
        await self.store.write(deletion_steps.delete_old_charges, self.clock())
        while await self.store.write(retention.delete_old_reasons, self.clock() - REASON_SECONDS):
            pass

    async def _remove_by_age(self) -> None:
        if self.limits.max_seconds is None:
            return
        cutoff = self.clock() - self.limits.max_seconds
        while (expired_jobs := await self.store.query(retention.list_expired, cutoff)) and await self._mark_removed(
            expired_jobs, "age"
        ):
            await self._finish_removals()

    async def _remove_by_size(self) -> None:
        """Remove the oldest until pictures fit. Files that stay do not count: an outage must not remove all jobs."""
        if self.limits.max_bytes is None:
            return
        while (excess := await self.store.query(retention.sum_bytes) - self.limits.max_bytes) > 0:
            oldest_jobs = await self.store.query(retention.list_oldest, self.clock() - GRACE_SECONDS)
            if not await self._mark_removed(_choose_until(oldest_jobs, excess), "room"):
                log.warning("pictures take %d bytes more than DARKROOM_KEEP_GB; nothing more may be removed", excess)
                return
            await self._finish_removals()

    async def _mark_removed(self, ids: Sequence[str], reason: DeletionReason) -> list[str]:
        marked_jobs = await self.store.write(retention.mark_removed, ids, reason, self.clock()) if ids else []
        if marked_jobs:
            log.info("removing %d jobs: %s", len(marked_jobs), reason)
        return marked_jobs

    async def _finish_removals(self) -> None:
        """Remove files and rows of the marked jobs; the next sweep retries those whose files cannot be removed now."""
        last_id = ""
        while marked_jobs := await self.store.query(retention.list_marked, RETENTION_REASONS, last_id):
            ids = [job for job, _ in marked_jobs]
            await remove_all_files(self.store, self.remove_files, ids)
            await self.store.write(retention.delete_rows, ids, self.clock())
            last_id = ids[-1]


async def remove_all_files(
    store: Store, remove_files: Callable[[Sequence[StoredPicture]], Awaitable[None]], ids: Sequence[str]
) -> None:
    """Remove all files of these deleted jobs; returns as well if some cannot be removed now."""
    earlier: list[StoredPicture] = []
    while (leftovers := await store.query(deletion_steps.list_leftover_files, ids)) and leftovers != earlier:
        await remove_files(leftovers)
        earlier = leftovers


def _choose_until(sizes: Sequence[tuple[str, int]], excess: int) -> list[str]:
    """Return the first jobs whose bytes cover the excess. Files that they share count in the next round."""
    chosen_jobs: list[str] = []
    for job, size in sizes:
        if excess <= 0:
            break
        chosen_jobs.append(job)
        excess -= size
    return chosen_jobs


ORPHAN_SECONDS = DAY_SECONDS
# refuse above max(50, 5 % of all files), or half of them
MIN_SUSPICIOUS = 50
MAX_SHARE = 0.05
HARD_SHARE = 0.5
TOO_MANY = "%d of %d files in the picture store are named by no job: is it this database's? None is removed"


DropCopies = Callable[[Collection[str]], Awaitable[None]]


async def drop_nothing(hashes: Collection[str]) -> None:
    """Drop nothing: there are no copies."""


class FileCleanup:
    """Removes deleted jobs' files: call it. `drop_copies` drops films and the broker's copies, by SHA-256."""

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
        await run_periodically(self.sweep, ORPHAN_SECONDS, "orphans", log)

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
