"""Retention: finished jobs go by age, and the oldest pictures where they take more room than they may.

Works in small steps beside everything else, and each can be the last before a crash: what was begun is found again.
Knows the store and how pictures are emptied; `bot.store.keeping` knows what may go.
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
GRACE_SECONDS = 3600.0  # for room alone nothing goes that ended just now: its author may be about to favour it
REMEMBERED = 400 * DAY  # how long it is known why a job is not here


@dataclass(frozen=True)
class Keep:
    """How long and how much. None: for ever, and as much as there is."""

    seconds: float | None = None
    bytes: int | None = None


class Retention:
    """Made by `bot.house`. `empty`: takes the files of deleted jobs away, as far as no other job has them."""

    def __init__(
        self, store: Store, empty: Callable[[Sequence[Stored]], Awaitable[None]], keep: Keep, *,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._empty, self._keep, self._clock = store, empty, keep, clock

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, OSError) as error:
                log.warning("retention: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """What was begun is ended; then what is too old goes, then what there is no room for."""
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
        """Files that could not be removed yet count no more: else one outage would take everything."""
        if self._keep.bytes is None:
            return
        while (excess := await self._store.ask(keeping.used) - self._keep.bytes) > 0:
            found = await self._store.ask(keeping.oldest, self._clock() - GRACE_SECONDS)
            if not await self._let_go(_enough(found, excess), "room"):
                log.warning("pictures take %d bytes more than DARKROOM_KEEP_GB; what is left must stay", excess)
                return
            await self._go_on()

    async def _let_go(self, ids: Sequence[str], why: Why) -> list[str]:
        going = await self._store.write(keeping.let_go, ids, why, self._clock()) if ids else []
        if going:
            log.info("%d jobs go: %s", len(going), why)
        return going

    async def _go_on(self) -> None:
        """Empty and drop what was let go; what cannot be emptied now is passed over until the next sweep."""
        after = ""
        while found := await self._store.ask(keeping.going, REMOVED, after):
            ids = [job for job, _ in found]
            await emptied(self._store, self._empty, ids)
            await self._store.write(keeping.drop, ids, self._clock())
            after = ids[-1]


async def emptied(store: Store, empty: Callable[[Sequence[Stored]], Awaitable[None]], ids: Sequence[str]) -> None:
    """Take all files of these deleted jobs away; returns as well when some of them cannot be removed now."""
    before: list[Stored] = []
    while (left := await store.ask(deleting.leftovers, ids)) and left != before:
        await empty(left)
        before = left


def _enough(found: Sequence[tuple[str, int]], excess: int) -> list[str]:
    """The first of them whose bytes are the excess or more; what they share with others is seen in the next round."""
    taken: list[str] = []
    for job, size in found:
        if excess <= 0:
            break
        taken.append(job)
        excess -= size
    return taken
