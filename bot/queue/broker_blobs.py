"""Pictures at the broker: puts the inputs of jobs there, and drops what nobody there needs any more.

The broker is a passage: a picture stays only while a worker or the bot has yet to fetch it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from bot.images.picture_store import PictureStore
from bot.queue.active_jobs import ActiveJobs
from engine.bus import BrokerUnreachable, Bus
from engine.contract import required_blobs

log = logging.getLogger(__name__)


class BrokerBlobs:
    """Each blob is put and dropped in turn, under the lock of its content."""

    def __init__(self, bus: Bus, pictures: PictureStore, active_jobs: ActiveJobs) -> None:
        self._bus, self._pictures, self._active_jobs = bus, pictures, active_jobs

    async def put(self, sha256: str) -> None:
        """Put a stored picture at the broker. Raises `BrokerUnreachable`, `ContentMissing`, `OSError`."""
        async with self._pictures.lock(sha256):
            await self._bus.put_blob(await self._pictures.get(sha256))

    async def drop_stored(self, hashes: Iterable[str]) -> None:
        """Drop the blobs of results, of those that are stored: a refused result may be another attempt's, too."""
        await self.drop([sha256 for sha256 in set(hashes) if await self._pictures.has(sha256)])

    async def drop(self, hashes: Iterable[str]) -> None:
        """Drop blobs, except the inputs of active jobs. The broker drops what is left within a day."""
        for sha256 in set(hashes):
            async with self._pictures.lock(sha256):
                if self._is_needed(sha256):
                    continue
                try:
                    await self._bus.drop_blob(sha256)
                except BrokerUnreachable as error:
                    log.warning("picture %s stays at the broker for a day at most: %s", sha256, error)

    def _is_needed(self, sha256: str) -> bool:
        active_jobs = self._active_jobs.by_id.values()
        return any(sha256 in required_blobs(active_job.record.task) for active_job in active_jobs)
