"""Pictures at the broker: puts the inputs of jobs there, and drops what nobody there needs any more.

The broker is a passage: a picture stays only while a worker or the bot has yet to fetch it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from bot.images.picture_store import PictureStore
from bot.queue.active_jobs import ActiveJobs
from engine.bus import BrokerUnreachable, Bus

log = logging.getLogger(__name__)


class BrokerBlobs:
    """Each blob is put and dropped in turn, under the lock of its content. Run `run` as a task."""

    def __init__(self, bus: Bus, pictures: PictureStore, active_jobs: ActiveJobs) -> None:
        self._bus = bus
        self._pictures = pictures
        self._active_jobs = active_jobs
        self._ingested: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Drop the blobs of ingested results, one by one, until cancelled: no result waits for that."""
        while True:
            sha256 = await self._ingested.get()
            try:
                if await self._pictures.has(sha256):  # a refused result may be another attempt's, too
                    await self._drop(sha256, self._bus.drop_read_blob)
            except OSError as error:
                log.warning("picture %s stays at the broker for a day at most: %s", sha256, error)

    async def put(self, sha256: str) -> None:
        """Put a stored picture at the broker. Raises `BrokerUnreachable`, `ContentMissing`, `OSError`."""
        async with self._pictures.lock(sha256):
            await self._bus.put_blob(await self._pictures.get(sha256))

    def drop_soon(self, hashes: Iterable[str]) -> None:
        """Let `run` drop the blobs of ingested results, of those that are stored."""
        for sha256 in set(hashes):
            self._ingested.put_nowait(sha256)

    async def drop(self, hashes: Iterable[str]) -> None:
        """Drop blobs, except the inputs of active jobs. The broker drops what is left within a day."""
        for sha256 in set(hashes):
            await self._drop(sha256, self._bus.drop_blob)

    async def _drop(self, sha256: str, drop_blob: Callable[[str], Awaitable[None]]) -> None:
        async with self._pictures.lock(sha256):
            if self._active_jobs.needs_blob(sha256):
                return
            try:
                await drop_blob(sha256)
            except BrokerUnreachable as error:
                log.warning("picture %s stays at the broker for a day at most: %s", sha256, error)
