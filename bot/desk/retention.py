"""Retention: removes old finished jobs, and the oldest pictures when storage is full.

It works in small steps; after a crash the next sweep finds what was begun. `bot.store.keeping` decides what may go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.store import Store, Stored, Unavailable, deleting, keeping, spent
from bot.store.keeping import REMOVED, Why

log = logging.getLogger(__name__)

DAY = 86_400.0
SWEEP_SECONDS = 600.0
GRACE_SECONDS = 3600.0  # size limits spare jobs that ended just now: their authors may want to mark favourites
REMEMBERED = 400 * DAY  # how long the reason of a removal is kept


@dataclass(frozen=True)
class Keep:
    """How long jobs are kept, and how many bytes of pictures. None: no limit."""

    seconds: float | None = None
    bytes: int | None = None


class Retention:
    """Sweeps periodically. `empty` removes the files of deleted jobs that no other job shares."""

    def __init__(
        self, store: Store, empty: Callable[[Sequence[Stored]], Awaitable[None]], keep: Keep, *,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._empty, self._keep, self._clock = store, empty, keep, clock

    async def run(self) -> None:
        """Sweep periodically until cancelled."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, OSError) as error:
                log.warning("retention: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Finish what was begun; then remove by age, then by size."""
        await self._go_on()
        await self._by_age()
        await self._by_room()
        await self._store.write(spent.lapse, self._clock())
        while await self._store.write(keeping.lapse, self._clock() - REMEMBERED):
            pass

    async def _by_age(self) -> None:
        if self._keep.seconds is None:
            return
        before = self._clock() - self._keep.seconds
        while (old := await self._store.ask(keeping.expired, before)) and await self._let_go(old, "age"):
            await self._go_on()

    async def _by_room(self) -> None:
        """Remove the oldest until pictures fit. Files that could not be removed count no more: else one outage would
        take all.
        """
        if self._keep.bytes is None:
            return
        while (excess := await self._store.ask(keeping.used) - self._keep.bytes) > 0:
            found = await self._store.ask(keeping.oldest, self._clock() - GRACE_SECONDS)
            if not await self._let_go(_enough(found, excess), "room"):
                log.warning("pictures take %d bytes more than DARKROOM_KEEP_GB; nothing more may be removed", excess)
                return
            await self._go_on()

    async def _let_go(self, ids: Sequence[str], why: Why) -> list[str]:
        going = await self._store.write(keeping.let_go, ids, why, self._clock()) if ids else []
        if going:
            log.info("removing %d jobs: %s", len(going), why)
        return going

    async def _go_on(self) -> None:
        """Empty and drop the marked jobs; the next sweep retries what cannot be emptied now."""
        after = ""
        while found := await self._store.ask(keeping.going, REMOVED, after):
            ids = [job for job, _ in found]
            await emptied(self._store, self._empty, ids)
            await self._store.write(keeping.drop, ids, self._clock())
            after = ids[-1]


async def emptied(store: Store, empty: Callable[[Sequence[Stored]], Awaitable[None]], ids: Sequence[str]) -> None:
    """Remove all files of these deleted jobs; returns as well if some cannot be removed now."""
    before: list[Stored] = []
    while (left := await store.ask(deleting.leftovers, ids)) and left != before:
        await empty(left)
        before = left


def _enough(found: Sequence[tuple[str, int]], excess: int) -> list[str]:
    """Return the first jobs whose bytes cover the excess. The next round accounts for files that they share with
    others.
    """
    taken: list[str] = []
    for job, size in found:
        if excess <= 0:
            break
        taken.append(job)
        excess -= size
    return taken
